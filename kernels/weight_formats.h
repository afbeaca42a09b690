// The formats in which the weights of a linear layer may lie: what an engine must know of each to
// load it and to choose its GEMM. How a GEMM reads one is in weight_format_*.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace qla {

enum class WeightFormat { kW8A8 };
// The "type" of a linear layer in config.json.
inline constexpr std::initializer_list<const char*> kWeightFormatNames = {"w8a8"};
inline constexpr WeightFormat kAllWeightFormats[] = {WeightFormat::kW8A8};
inline constexpr int kWeightFormats = static_cast<int>(kWeightFormatNames.size());

// [blocks of 64 columns][steps of k][64][bytes of a step]
struct WeightShape {
  int column_blocks, steps, columns, bytes;
};

// k and n are a linear layer's, both multiples of 64.
struct WeightFormatInfo {
  const char* gemm;                    // the operation that multiplies by it, for explain()
  size_t block_bytes;                  // of 64 k x 64 columns
  WeightShape (*shape)(int k, int n);  // of the tensor in model.safetensors
  // Sums of each column's weights over k.
  void (*column_sums)(const int8_t* weight, int k, int n, int32_t* sums);
};

const WeightFormatInfo& weight_format(WeightFormat format);

inline size_t weight_bytes(WeightFormat format, int k, int n) {
  const size_t blocks = static_cast<size_t>(k / 64) * static_cast<size_t>(n / 64);
  return blocks * weight_format(format).block_bytes;
}

}  // namespace qla
