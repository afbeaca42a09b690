// Integer dot products on AVX2 without VNNI.
//
// VPMADDUBSW would saturate (255 * 127 * 2 > 32767) and give wrong answers on real models, so both
// operands are widened to 16 bits and multiplied by VPMADDWD, which is exact. One ymm then holds
// 4 columns x 4 k as two partial sums a column; they are joined once, after the k loop.
#pragma once

#include "simd/avx2.h"

// A block's product is no part of its caller's loops, whose variables would push its sums out of
// the 16 registers.
#define QLA_BLOCK_FUNCTION __attribute__((noinline))

namespace qla {
namespace {

struct Quad {
  __m256i v;  // 4 x 16 bits, four times
};
struct Columns {
  __m256i v[4];  // columns 4q .. 4q+3
};
struct Dot16 {
  __m256i v[4];  // two sums for each of columns 4q .. 4q+3
  i32x16 start;
};

constexpr int kGemmRows = 2, kGemmPanels = 1;  // 8 sums, 4 weights, 2 quads
constexpr int kScoreQueries = 2, kScorePanels = 1;
constexpr int kValueQueries = 2, kValuePanels = 1;

QLA_INLINE Quad load_quad(const uint8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  return {_mm256_broadcastq_epi64(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(four)))};
}
QLA_INLINE Columns load_columns(const int8_t* p) {
  Columns w;
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
    w.v[q] = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16 * q)));
  }
  return w;
}
QLA_INLINE void accumulate(Dot16& sum, Quad x, const Columns& w) {
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
    sum.v[q] = _mm256_add_epi32(sum.v[q], _mm256_madd_epi16(x.v, w.v[q]));
  }
}
// {a0 a0' a1 a1' | a2 ..}, {b0 ..}: the two partial sums of each column added, columns in order.
QLA_INLINE __m256i join(__m256i first4, __m256i next4) {
  return _mm256_permute4x64_epi64(_mm256_hadd_epi32(first4, next4), 0xd8);
}
QLA_INLINE i32x16 operator+(i32x16 a, i32x16 b) {
  return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}
QLA_INLINE i32x16 total(const Dot16& sum) {
  return i32x16{join(sum.v[0], sum.v[1]), join(sum.v[2], sum.v[3])} + sum.start;
}
QLA_INLINE Dot16 dot_from(i32x16 start) {
  const __m256i z = _mm256_setzero_si256();
  return {{z, z, z, z}, start};
}

}  // namespace
}  // namespace qla
