// Whether the caller still wants what is being done.
#pragma once

#include <cstdint>

#include "error.h"
#include "qla/qla.h"

namespace qla {

class StopRequest {
 public:
  StopRequest() = default;  // never
  StopRequest(qla_stop stop, void* user) : stop_(stop), user_(user) {}

  bool possible() const { return stop_ != nullptr; }
  bool asked() const { return stop_ && stop_(user_) != 0; }
  [[noreturn]] static void stopped() { fail(QLA_STOPPED, "stopped on the caller's request"); }
  void check() const {
    if (asked()) stopped();
  }

 private:
  qla_stop stop_ = nullptr;
  void* user_ = nullptr;
};

}  // namespace qla
