// The formats in which the weights of a linear layer may lie: what an engine must know of each to
// load it and to choose its GEMM. How a GEMM reads one is in weight_format_*.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace qla {

enum class WeightFormat { kW8A8, kW2A8 };
// The "type" of a linear layer in config.json.
inline constexpr std::initializer_list<const char*> kWeightFormatNames = {"w8a8", "w2a8"};
inline constexpr WeightFormat kAllWeightFormats[] = {WeightFormat::kW8A8, WeightFormat::kW2A8};
inline constexpr int kWeightFormats = static_cast<int>(kWeightFormatNames.size());

// [blocks of 64 columns][steps of k][columns: 64, or those that share bytes][bytes of a step]
struct WeightShape {
  int column_blocks, steps, columns, bytes;
};

// k and n are a linear layer's, both multiples of 64.
struct WeightFormatInfo {
  const char* gemm;                    // the operation that multiplies by it, for explain()
  bool packed;                         // a byte holds several weights, as two-bit codes
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

// Of GemmArgs::scratch: room for 64 columns, unpacked, or for 32 rows that are widened to 16 bits.
inline size_t gemm_scratch_bytes(int k) { return size_t{64} * static_cast<size_t>(k); }

// A ternary weight is stored as the code weight + 1, four to a byte. The first of `size` bytes that
// holds a 3, or `size`.
size_t find_no_weight(const int8_t* codes, size_t size);

// A row of n weights, a multiple of 64: byte b of each 16 holds columns b, 16 + b, 32 + b, 48 + b.
void unpack_row(const int8_t* codes, int n, int8_t* weights);

}  // namespace qla
