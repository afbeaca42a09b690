// w8a8: a weight is a signed byte, in the layout n64k4: weight[n / 64][k / 4][n % 64][k % 4].
//
// All k of 64 columns lie in one run, which is read once from front to back. Its steps are quads:
// four k of 64 columns. Sixteen columns of a quad are one operand of a dot product.
//
// Textually included after one of the simd headers that define QLA_INLINE.
#pragma once

#include <smmintrin.h>

#include <cstddef>
#include <cstdint>

#include "weight_formats.h"

namespace qla {
namespace {

struct W8A8 {
  static constexpr const char* kGemm = "gemm_u8s8";
  static constexpr bool kPacked = false;
  static constexpr int kMostMagnitude = 128;
  static constexpr size_t kBlockBytes = 64 * 64;
  static constexpr int kQuadBytes = 4 * 64;

  static WeightShape shape(int k, int n) { return {n / 64, k / 4, 64, 4}; }

  // One weight, for the reference.
  static int at(const int8_t* weight, int k, int row, int col) {
    return columns(weight, k, col)[row / 4 * kQuadBytes + row % 4];
  }

  // Where the first quad of column `col` and its neighbours begins; kQuadBytes further the next.
  static const int8_t* columns(const int8_t* weight, int k, int col) {
    return weight + static_cast<size_t>(col / 64) * 64 * k + col % 64 * 4;
  }

  // Columns 16 * j .. of a quad: the first row of a tile, whose next ones lie kQuadBytes apart, or
  // one operand.
  static const int8_t* panel(const int8_t* quad, int j) { return quad + 64 * j; }

  // Four k of a column stand side by side: multiplied by ones, neighbours are added, bytes first
  // and then words.
  static void column_sums(const int8_t* weight, int k, int n, int32_t* sums) {
    constexpr int kVectors = 16, kMostQuads = 64;  // of 4 columns; 64 * 2 * 2 * 128 < 2^15
    const __m128i ones8 = _mm_set1_epi8(1), ones16 = _mm_set1_epi16(1);
    const auto* from = reinterpret_cast<const __m128i*>(weight);
    for (int column = 0; column < n; column += 4 * kVectors) {
      auto* to = reinterpret_cast<__m128i*>(sums + column);
      for (int i = 0; i < kVectors; ++i) _mm_storeu_si128(to + i, _mm_setzero_si128());
      for (int quad = 0; quad < k / 4;) {
        __m128i words[kVectors] = {};
        const int stop = quad + kMostQuads < k / 4 ? quad + kMostQuads : k / 4;
        for (; quad < stop; ++quad) {
          for (int i = 0; i < kVectors; ++i) {
            words[i] = _mm_add_epi16(words[i], _mm_maddubs_epi16(ones8, _mm_load_si128(from++)));
          }
        }
        for (int i = 0; i < kVectors; ++i) {
          const __m128i so_far = _mm_loadu_si128(to + i);
          _mm_storeu_si128(to + i, _mm_add_epi32(so_far, _mm_madd_epi16(words[i], ones16)));
        }
      }
    }
  }
};

}  // namespace
}  // namespace qla
