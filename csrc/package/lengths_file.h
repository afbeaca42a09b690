// length_configs.json: the package's length configs, read and checked.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "qla/qla.h"

namespace qla {

struct StoredLength {
  std::string name;  // empty: an entry of the frontier without one
  qla_length_rule rule = QLA_LENGTH_RATIO;
  std::vector<double> values;  // one per layer
  bool keep_cls = true;
  bool measured = false;  // whether the next three are known
  std::string metric, data;
  double accuracy = 0.0;
};

struct LengthsFile {
  std::vector<StoredLength> configs;  // one is called "full"
  std::vector<StoredLength> frontier;
};

// Throws qla::Error.
LengthsFile read_lengths_file(std::string_view text, int layers);

}  // namespace qla
