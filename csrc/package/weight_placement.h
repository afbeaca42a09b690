// Where the linear layers' weights lie while an engine runs.
#pragma once

namespace qla {

enum class WeightPlacement {
  kAuto,      // mapped; resident where they exceed the last-level cache and the mapping has no
              // large pages
  kMapped,    // in the mapped file, which all processes share
  kResident,  // in a private copy on large pages
};

// The placement called "auto", "mapped" or "resident"; null is "auto". Throws qla::Error.
WeightPlacement parse_weight_placement(const char* name);

}  // namespace qla
