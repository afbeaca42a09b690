// A model's parameters: pointers into the file that holds them, or into a copy of it.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "weight_formats.h"

namespace qla {

// Sixteen floats on a cache line of their own; a vector of them keeps the alignment.
struct alignas(64) Floats16 {
  float value[16];
};

// One linear layer: y = (u8 activations . weights) * scales + bias; see docs/numerics.md.
struct Linear {
  int k = 0, n = 0;
  WeightFormat format = WeightFormat::kW8A8;
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

  std::array<const Linear*, 4> linears() const { return {&qkv, &output, &ffn_in, &ffn_out}; }
  // Of their weights.
  size_t weight_bytes() const {
    size_t bytes = 0;
    for (const Linear* linear : linears()) {
      bytes += qla::weight_bytes(linear->format, linear->k, linear->n);
    }
    return bytes;
  }
};

struct Embeddings {
  const int8_t* word = nullptr;       // (vocab, hidden); ternary: (vocab, hidden / 4) codes
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

  // Of the linear layers' weights, in the layer that has most.
  size_t most_layer_bytes() const {
    size_t most = 0;
    for (const Layer& layer : layers) most = std::max(most, layer.weight_bytes());
    return most;
  }
  // What any of their products needs (GemmArgs::scratch).
  size_t most_gemm_scratch_bytes() const {
    size_t most = 0;
    for (const Layer& layer : layers) {
      for (const Linear* linear : layer.linears()) {
        most = std::max(most, gemm_scratch_bytes(linear->k));
      }
    }
    return most;
  }
};

}  // namespace qla
