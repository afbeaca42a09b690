// An opened package: what docs/file-format.md describes, every promise in it checked. Everything
// above trusts its pointers blindly.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "package/lengths_file.h"
#include "package/resident_weights.h"
#include "package/spec.h"
#include "package/weight_placement.h"
#include "package/weights.h"
#include "qla/qla.h"
#include "stop.h"

namespace qla {

class Package {
 public:
  // Both throw qla::Error(QLA_BAD_PACKAGE or QLA_UNSUPPORTED) naming file, entry and rule;
  // open_memory also QLA_INVALID_INPUT, for a null pointer, a file given twice, a bad alignment;
  // and QLA_STOPPED.
  static std::unique_ptr<Package> open(const std::string& folder, const StopRequest& stop = {},
                                       WeightPlacement placement = WeightPlacement::kAuto);
  static std::unique_ptr<Package> open_memory(const qla_file* files, size_t num_files,
                                              const StopRequest& stop = {},
                                              WeightPlacement placement = WeightPlacement::kAuto);
  ~Package();
  Package(const Package&) = delete;
  Package& operator=(const Package&) = delete;

  EncoderSpec encoder;
  TaskSpec task;
  LengthsFile lengths;
  Weights weights;

  std::string name;
  std::string source;  // folder, or "memory"
  std::string config_json, length_configs_json;
  std::string_view tokenizer_json;  // as opened; not parsed here
  size_t weight_bytes = 0;          // size of model.safetensors
  std::string weight_place;         // where the linear layers' weights lie, and why; for explain()

 private:
  Package() = default;
  struct Mapping;
  std::unique_ptr<Mapping> mapping_;
  std::unique_ptr<ResidentWeights> resident_;  // null: weights are read where the file is mapped
  friend struct PackageReader;
};

}  // namespace qla
