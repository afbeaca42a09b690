// A model's parameters: pointers into the file that holds them, or into a copy of it.
#pragma once

#include <cstdint>
#include <vector>

#include "weight_formats.h"

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

struct Embeddings {
  const int8_t* word = nullptr;       // (vocab, hidden)
  const float* word_scale = nullptr;  // (vocab)
  const float* position = nullptr;    // (max_positions + position_offset, hidden)
  const float* token_type = nullptr;  // (type_vocab, hidden)
  Norm norm;
};

struct Weights {
  Embeddings embeddings;
  std::vector<Layer> layers;
  const float* pooler_weight = nullptr;  // (hidden, hidden)
  const float* pooler_bias = nullptr;
  const float* head_weight = nullptr;  // (outputs, hidden)
  const float* head_bias = nullptr;
};

}  // namespace qla
