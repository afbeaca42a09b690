// Length semantics: from a config and a sequence's real length to the number of tokens each layer
// keeps, and what that costs. Kernels see only these counts and the keep lists.
#pragma once

#include <cstdint>

#include "package/spec.h"
#include "qla/qla.h"

namespace qla {

// Throws qla::Error(QLA_INVALID_INPUT) for a config that is not one of this model's, and
// QLA_UNSUPPORTED for a rule this build does not know.
void check_length_config(const qla_length_config& config, int layers);

// tokens[0] = n0, tokens[i + 1] = tokens that layer i's feed-forward sees.
//   ratio:  k = min(n_current, max(2, ceil(r * n0 - 1e-6)))
//   tokens: k = min(n_current, max(2, count))
void count_tokens(const qla_length_config* config, int layers, int n0, int32_t* tokens);

// Multiply-accumulates of one sequence, counted as the papers count them: projections, both
// attention products, feed-forward, one per LayerNorm element, and the head.
int64_t count_macs(const EncoderSpec& spec, const TaskSpec& task, const int32_t* tokens);

}  // namespace qla
