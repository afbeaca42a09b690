#include "lengths.h"

#include <algorithm>
#include <cmath>

#include "error.h"

namespace qla {

void check_length_config(const qla_length_config& config, int layers) {
  if (config.rule != QLA_LENGTH_RATIO && config.rule != QLA_LENGTH_TOKENS) {
    fail(QLA_UNSUPPORTED,
         "length config rule %d is unknown to this build; use ratios (0) or token counts (1)",
         config.rule);
  }
  if (config.num_values != layers || !config.values) {
    fail(QLA_INVALID_INPUT,
         "length config has %d entries, but this model has %d layers; give one entry per layer",
         config.num_values, layers);
  }
  const bool ratio = config.rule == QLA_LENGTH_RATIO;
  for (int i = 0; i < layers; ++i) {
    const double value = config.values[i];
    if (!(value > 0.0) || std::isinf(value)) {
      fail(QLA_INVALID_INPUT,
           "length config entry %d is %g; every entry must be a positive, finite number", i, value);
    }
    if (!ratio && value != std::floor(value)) {
      fail(QLA_INVALID_INPUT, "length config entry %d is %g; a token count is a whole number", i,
           value);
    }
    if (ratio && value > 1.0) {
      fail(
          QLA_INVALID_INPUT,
          "length config entry %d is %g; a ratio may not exceed 1.0 (use token counts for absolute "
          "lengths)",
          i, value);
    }
    if (i > 0 && value > config.values[i - 1]) {
      fail(QLA_INVALID_INPUT,
           "length config entry %d is %g, above entry %d (%g); entries may not rise, since a "
           "dropped token does not come back before the end",
           i, value, i - 1, config.values[i - 1]);
    }
  }
}

void count_tokens(const qla_length_config* config, int layers, int n0, int32_t* tokens) {
  tokens[0] = n0;
  for (int i = 0; i < layers; ++i) {
    const int current = tokens[i];
    if (!config) {
      tokens[i + 1] = current;
      continue;
    }
    const double value = config->values[i];
    const double wanted = config->rule == QLA_LENGTH_RATIO ? std::ceil(value * n0 - 1e-6) : value;
    tokens[i + 1] = static_cast<int32_t>(std::min<double>(current, std::max(2.0, wanted)));
  }
}

int64_t count_macs(const EncoderSpec& spec, const TaskSpec& task, const int32_t* tokens) {
  const int64_t d = spec.hidden, f = spec.intermediate, n0 = tokens[0], outputs = task.outputs;
  int64_t macs = d * n0;  // embedding LayerNorm
  for (int i = 0; i < spec.layers; ++i) {
    const int64_t before = tokens[i], after = tokens[i + 1];
    macs += 4 * before * d * d + 2 * before * before * d + 2 * after * d * f;
    macs += d * (before + after);  // two LayerNorms
  }
  switch (task.kind) {
    case QLA_TASK_SPAN_QA:
    case QLA_TASK_TOKEN_CLASSIFICATION:
      return macs + outputs * d * (n0 + 1);
    case QLA_TASK_SEQUENCE_CLASSIFICATION:
      return macs + (task.has_pooler ? d * d : 0) + outputs * d;
    case QLA_TASK_EMBEDDING:
      return macs + (task.mean_pooling ? n0 * d : 0);
  }
  return macs;
}

}  // namespace qla
