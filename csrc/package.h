// The package room: opens what docs/file-format.md describes, checks every promise it makes, and
// hands out typed pointers into the mapping. Everything above trusts these pointers blindly.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "qla/qla.h"
#include "resident_weights.h"
#include "stop.h"
#include "weight_formats.h"
#include "weight_placement.h"

namespace qla {

// Sixteen floats on a cache line of their own; a vector of them keeps the alignment.
struct alignas(64) Floats16 {
  float value[16];
};

// One linear layer: y = (u8 activations . s8 weights) * scales + bias; see docs/numerics.md.
struct Linear {
  WeightFormat format = WeightFormat::kW8A8;
  int k = 0, n = 0;
  const int8_t* weight = nullptr;    // (k, n) in that format
  const float* scale = nullptr;      // (n) per output channel
  const float* bias = nullptr;       // (n)
  std::vector<Floats16> column_sum;  // (n) sum of weights over k; exact, being below 2^24
  bool static_activation = false;    // false: scale and zero point come from each row
  float input_scale = 0.0f;
  int32_t input_zero_point = 0;
};

struct Norm {
  const float* weight = nullptr;
  const float* bias = nullptr;
};

struct Layer {
  Linear qkv, output, ffn_in, ffn_out;
  Norm attention_norm, ffn_norm;
};

struct EncoderSpec {
  int layers = 0, hidden = 0, heads = 0, head_dim = 0, intermediate = 0;
  int vocab_size = 0, max_positions = 0, position_offset = 0, type_vocab_size = 0;
  float norm_eps = 0.0f;
};

// Bytes of the linear layers' weights, in one layer.
inline size_t layer_weight_bytes(const EncoderSpec& spec) {
  const size_t hidden = static_cast<size_t>(spec.hidden);
  return hidden * (4 * hidden + 2 * static_cast<size_t>(spec.intermediate));
}

struct TaskSpec {
  qla_task kind = QLA_TASK_EMBEDDING;
  bool keep_cls = true;
  int outputs = 0;          // columns of the logits (hidden for embeddings)
  bool has_pooler = false;  // dense + tanh on the CLS row before the head
  bool mean_pooling = true;
  bool normalize = false;
};

struct Embeddings {
  const int8_t* word = nullptr;       // (vocab, hidden)
  const float* word_scale = nullptr;  // (vocab)
  const float* position = nullptr;    // (max_positions + position_offset, hidden)
  const float* token_type = nullptr;  // (type_vocab, hidden)
  Norm norm;
};

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
  Embeddings embeddings;
  std::vector<Layer> layers;
  const float* pooler_weight = nullptr;  // (hidden, hidden)
  const float* pooler_bias = nullptr;
  const float* head_weight = nullptr;  // (outputs, hidden)
  const float* head_bias = nullptr;

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
