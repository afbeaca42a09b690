// The length configs that a package brings: those it names, and its frontier.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "package/package.h"

namespace qla {

struct NamedLength : StoredLength {
  bool in_frontier = false;
  int64_t macs = 0;         // of one sequence of the package's max_length tokens
  double macs_share = 1.0;  // of those of "full"

  // A view for the C door; this entry must outlive it.
  qla_length_config plain() const;
};

class NamedLengths {
 public:
  explicit NamedLengths(const Package& package);

  // The package's named configs in its order, then its frontier. An entry of the frontier that has
  // no name, or one that is taken, is called "frontier-N", counted from 1.
  const std::vector<NamedLength>& all() const { return all_; }
  const NamedLength* find(const std::string& name) const;  // null where there is none

  // What a budget chooses from, best first: by accuracy where `full` and another config were
  // measured on the same data (others are left out), else by multiply-accumulates.
  const std::vector<const NamedLength*>& best_first() const { return best_first_; }

 private:
  std::string free_name(const std::string& own, size_t number) const;

  std::vector<NamedLength> all_;
  std::vector<const NamedLength*> best_first_;
};

}  // namespace qla
