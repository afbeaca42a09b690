// Integer dot products on AVX-VNNI: VPDPBUSD on ymm, two of them for 16 columns. 16 ymm in all.
#pragma once

#include "simd/avx2.h"

#define QLA_BLOCK_FUNCTION

namespace qla {
namespace {

struct Quad {
  __m256i v;
};
struct Columns {
  __m256i lo, hi;
};
struct Dot16 {
  __m256i lo, hi;
};

constexpr int kGemmPanels = 1;
constexpr int kScoreQueries = 4, kScorePanels = 1;  // 8 sums, 2 keys, 1 quad
constexpr int kValueQueries = 4, kValuePanels = 1;

QLA_INLINE Quad load_quad(const uint8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  return {_mm256_set1_epi32(four)};
}
QLA_INLINE Columns load_columns(const int8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
QLA_INLINE void accumulate(Dot16& sum, Quad x, const Columns& w) {
  sum.lo = _mm256_dpbusd_avx_epi32(sum.lo, x.v, w.lo);
  sum.hi = _mm256_dpbusd_avx_epi32(sum.hi, x.v, w.hi);
}
QLA_INLINE i32x16 total(const Dot16& sum) { return {sum.lo, sum.hi}; }
QLA_INLINE Dot16 dot_from(i32x16 start) { return {start.lo, start.hi}; }

// What a GEMM multiplies with, whatever the weights.
struct ByteDots {
  using Activation = uint8_t;
  template <int>
  using Sum = Dot16;
  template <int>
  static constexpr int kPasses = 1;
  static constexpr bool kWidens = false;
  static constexpr int kRows = 6;  // 12 sums, 2 weights, 1 quad
  static constexpr int kMostDepth = 0;
  static QLA_INLINE Quad quad(const uint8_t* p) { return load_quad(p); }
  template <int>
  static QLA_INLINE Columns columns(const int8_t* p) {
    return load_columns(p);
  }
  static const uint8_t* activations(const uint8_t* from, int, uint16_t*) { return from; }
};
using TernaryDots = ByteDots;

}  // namespace
}  // namespace qla
