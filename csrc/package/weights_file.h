// model.safetensors: the tensors that config.json calls for, each checked.
#pragma once

#include <cstddef>
#include <vector>

#include "package/package_files.h"
#include "package/resident_weights.h"
#include "package/spec.h"
#include "package/weights.h"
#include "stop.h"

namespace qla {

// The most bytes that the file of such a model takes, header included. More than that, and the file
// is wrong without a look inside.
size_t most_weight_bytes(const EncoderSpec& encoder, const TaskSpec& task);

// `layers` say how their inputs are quantized, as ConfigFile has them. Linear layers' weights are
// copied to `resident`; null: they stay where the file is. Throws qla::Error.
Weights read_weights_file(const FileBytes& file, WeightLayout layout, const EncoderSpec& encoder,
                          const TaskSpec& task, std::vector<Layer> layers,
                          ResidentWeights* resident, const StopRequest& stop);

}  // namespace qla
