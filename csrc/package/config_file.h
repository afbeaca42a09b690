// config.json: read, and every promise in it checked.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "package/spec.h"
#include "package/weights.h"

namespace qla {

// Weights, biases and scales within this keep every later value finite: no path meets a NaN or an
// infinity, about which instruction sets disagree.
constexpr float kLargestValue = 1e4f;

struct ConfigFile {
  std::string name;
  EncoderSpec encoder;
  TaskSpec task;
  std::vector<Layer> layers;  // how their inputs are quantized; all else is still to come
};

// Throws qla::Error.
ConfigFile read_config_file(std::string_view text);

}  // namespace qla
