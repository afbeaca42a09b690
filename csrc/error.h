// The one exception type of csrc; c_api.cpp turns it into a status code and a message.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <stdexcept>
#include <string>

#include "qla/qla.h"

namespace qla {

struct Error : std::runtime_error {
  Error(qla_status status_code, const std::string& message)
      : std::runtime_error(message), code(status_code) {}
  qla_status code;
};

// printf-style, so that messages stay readable where they are raised.
[[noreturn]] __attribute__((format(printf, 2, 3))) inline void fail(qla_status code,
                                                                    const char* format, ...) {
  char text[1024];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  throw Error(code, text);
}

}  // namespace qla
