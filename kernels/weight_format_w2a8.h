// w2a8: a weight is -1, 0 or 1, stored as the two-bit code weight + 1, four columns to a byte:
// weight[n / 64][k / 4][n % 16][k % 4]. Byte b of a quad (four k of 64 columns) holds the weights
// of columns 16 * j + b / 4 at k = b % 4, that of column j in bits 2j and 2j + 1.
//
// So 16 columns of a quad, the operand of w8a8, come by a table look-up in the low or high halves
// of its bytes. Code 3 is no weight: packages that have one are refused.
//
// Textually included after one of the simd headers that define Bytes64.
#pragma once

#include "weight_format_w8a8.h"

namespace qla {
namespace {

// The weights of both codes in half a byte.
constexpr int8_t kLowCode[16] = {-1, 0, 1, 0, -1, 0, 1, 0, -1, 0, 1, 0, -1, 0, 1, 0};
constexpr int8_t kHighCode[16] = {-1, -1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0};

struct W2A8 {
  static constexpr const char* kGemm = "gemm_u8s2";
  static constexpr bool kPacked = true;
  static constexpr int kMostMagnitude = 1;
  static constexpr size_t kBlockBytes = 64 * 64 / 4;
  static constexpr int kQuadBytes = 64;

  static WeightShape shape(int k, int n) { return {n / 64, k / 4, 16, 4}; }

  static int at(const int8_t* weight, int k, int row, int col) {
    const int8_t four = columns(weight, k, col)[row / 4 * kQuadBytes + col % 16 * 4 + row % 4];
    return (four >> (col % 64 / 16 * 2) & 3) - 1;
  }

  // Where the first quad of the 64 columns around `col` begins; kQuadBytes further the next.
  static const int8_t* columns(const int8_t* weight, int k, int col) {
    return weight + static_cast<size_t>(col / 64) * kQuadBytes * (k / 4);
  }

  // Columns 16 * j .. of a quad.
  static QLA_INLINE Bytes64 panel(const int8_t* quad, int j) {
    return look_up(j % 2 == 0 ? kLowCode : kHighCode, j < 2 ? low_halves(quad) : high_halves(quad));
  }
  // A template, since only instruction sets that keep 64 columns in registers have columns_of.
  template <typename Bytes = Bytes64>
  static QLA_INLINE Columns load(const int8_t* quad, int j) {
    return columns_of(Bytes(panel(quad, j)));
  }

  // All k of 64 columns, in the layout of w8a8.
  static void unpack(const int8_t* quad, int k, int8_t* to) {
    for (int i = 0; i < k / 4; ++i, quad += kQuadBytes, to += W8A8::kQuadBytes) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) store(to + 64 * j, panel(quad, j));
    }
  }

  // As W8A8 adds them up; words have room for the 2 * 4096 of the largest k.
  static void column_sums(const int8_t* weight, int k, int n, int32_t* sums) {
    const __m128i ones8 = _mm_set1_epi8(1), ones16 = _mm_set1_epi16(1), half = _mm_set1_epi8(15);
    const __m128i low_code = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kLowCode));
    const __m128i high_code = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kHighCode));
    const auto* from = reinterpret_cast<const __m128i*>(weight);
    for (int column = 0; column < n; column += 64) {
      __m128i words[4][4] = {};  // [j][i]: columns 16 * j + 4 * i ..
      const auto add = [&](__m128i& sum, __m128i table, __m128i codes) {
        const __m128i weights = _mm_shuffle_epi8(table, _mm_and_si128(codes, half));
        sum = _mm_add_epi16(sum, _mm_maddubs_epi16(ones8, weights));
      };
      for (int quad = 0; quad < k / 4; ++quad) {
        for (int i = 0; i < 4; ++i) {
          const __m128i low = _mm_load_si128(from++), high = _mm_srli_epi16(low, 4);
          add(words[0][i], low_code, low);
          add(words[1][i], high_code, low);
          add(words[2][i], low_code, high);
          add(words[3][i], high_code, high);
        }
      }
      auto* to = reinterpret_cast<__m128i*>(sums + column);
      for (const auto& panel : words) {
        for (const __m128i sum : panel) _mm_storeu_si128(to++, _mm_madd_epi16(sum, ones16));
      }
    }
  }
};

}  // namespace
}  // namespace qla
