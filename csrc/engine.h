// One opened package with its kernels, threads and workspaces: what a qla_engine handle points to.
#pragma once

#include <memory>
#include <string>

#include "encoder/encoder.h"
#include "kernels.h"
#include "package/package.h"
#include "teams.h"
#include "thread_budget.h"

namespace qla {

class Engine {
 public:
  // Throws qla::Error for an ISA that is unknown or absent, and for thread counts out of range.
  Engine(std::unique_ptr<Package> package, const qla_options& options);

  // Throws qla::Error: QLA_INVALID_INPUT before anything ran, QLA_STOPPED when the batch's callback
  // ended it. The engine stays as it was.
  void run(const qla_batch& batch, const qla_outputs& outputs);

  const Package& package() const { return *package_; }
  int num_threads() const { return pool_.threads(); }
  int streams() const { return pool_.streams(); }
  std::string explain() const;

 private:
  std::unique_ptr<Package> package_;
  std::string isa_source_, threads_source_;  // why this ISA, why this many threads
  const Isa isa_;
  TeamPool pool_;
  Encoder encoder_;
};

}  // namespace qla
