// Integer dot products on AVX2 without VNNI.
//
// On bytes, VPMADDUBSW would saturate (255 * 127 * 2 > 32767) and give wrong answers on real
// models, so both operands are widened to 16 bits and multiplied by VPMADDWD, which is exact. One
// ymm then holds 4 columns x 4 k as two partial sums a column; they are joined once, after the k
// loop. Ternary weights cannot saturate it: TernaryDots below.
#pragma once

#include <type_traits>

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

constexpr int kGemmPanels = 1;
constexpr int kScoreQueries = 2, kScorePanels = 1;
constexpr int kValueQueries = 2, kValuePanels = 1;

QLA_INLINE Quad load_quad(const uint8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  return {_mm256_broadcastq_epi64(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(four)))};
}
// Four values that are widened already: a load alone, where load_quad above takes three
// instructions of the ports that multiply.
QLA_INLINE Quad load_quad(const uint16_t* p) {
  int64_t four;
  __builtin_memcpy(&four, p, 8);
  return {_mm256_set1_epi64x(four)};
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

// sum += product, here and now, in the register of the sum. From intrinsics, GCC begins all
// products of a step before it adds the first of them, and runs out of registers.
QLA_INLINE void add_words_now(__m256i& sum, __m256i product) {
  asm volatile("vpaddw %1, %0, %0" : "+x"(sum) : "x"(product));
}
QLA_INLINE void add_now(__m256i& sum, __m256i product) {
  asm volatile("vpaddd %1, %0, %0" : "+x"(sum) : "x"(product));
}

// Any bytes as weights.
struct Columns8 {
  __m256i v[2];  // columns 4q .. 4q + 3
};
struct Sums8 {
  __m256i v[2];  // two sums for each of columns 4q .. 4q + 3
};
QLA_INLINE void accumulate(Sums8& sum, Quad x, const Columns8& w) {
  add_now(sum.v[0], _mm256_madd_epi16(x.v, w.v[0]));
  add_now(sum.v[1], _mm256_madd_epi16(x.v, w.v[1]));
}
QLA_INLINE __m256i total(const Sums8& sum) { return join(sum.v[0], sum.v[1]); }
QLA_INLINE void store(int32_t* p, __m256i a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a);
}
struct ByteDots {
  using Activation = uint16_t;  // widened once for all columns
  static constexpr bool kWidens = true;
  static constexpr int kRows = 6, kMostDepth = 0;
  // Many rows share what a weight costs to widen, on 8 of 16 columns at a time: 12 sums, 2 weights,
  // 1 quad and 1 product. Few rows read each line of weights once.
  template <int kRows>
  static constexpr int kPasses = kRows > 2 ? 2 : 1;
  template <int kRows>
  using Sum = std::conditional_t<kPasses<kRows> == 2, Sums8, Dot16>;
  static QLA_INLINE Quad quad(const uint16_t* p) { return load_quad(p); }
  template <int kRows>
  static QLA_INLINE auto columns(const int8_t* p) {
    if constexpr (kPasses<kRows> == 1) {
      return load_columns(p);
    } else {
      const auto* from = reinterpret_cast<const __m128i*>(p);
      return Columns8{{_mm256_cvtepi8_epi16(_mm_loadu_si128(from)),
                       _mm256_cvtepi8_epi16(_mm_loadu_si128(from + 1))}};
    }
  }

  // n values, a multiple of 16: `from` itself, or `to`, where they are widened.
  static QLA_INLINE const uint16_t* activations(const uint8_t* from, int n, uint16_t* to) {
    for (int i = 0; i < n; i += 16) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), _mm256_cvtepu8_epi16(bytes));
    }
    return to;
  }
};

// -1, 0 and 1 as weights: VPMADDUBSW is exact, and its sums have room in 16 bits for a while. That
// is half the instructions of ByteDots.
struct TernaryColumns {
  __m256i lo, hi;  // 8 columns x 4 k each
};
struct TernarySums {
  __m256i lo, hi;  // two sums of 16 bits for each of 8 columns
  i32x16 carried;  // earlier ones
};
QLA_INLINE void accumulate(TernarySums& sum, Quad x, const TernaryColumns& w) {
  add_words_now(sum.lo, _mm256_maddubs_epi16(x.v, w.lo));
  add_words_now(sum.hi, _mm256_maddubs_epi16(x.v, w.hi));
}
QLA_INLINE i32x16 total(const TernarySums& sum) {
  const __m256i ones = _mm256_set1_epi16(1);
  return i32x16{_mm256_madd_epi16(sum.lo, ones), _mm256_madd_epi16(sum.hi, ones)} + sum.carried;
}
QLA_INLINE void carry(TernarySums& sum) {
  sum = {_mm256_setzero_si256(), _mm256_setzero_si256(), total(sum)};
}
struct TernaryDots {
  using Activation = uint8_t;
  template <int>
  using Sum = TernarySums;
  template <int>
  static constexpr int kPasses = 1;
  static constexpr bool kWidens = false;
  static constexpr int kRows = 6;         // 12 sums, 2 weights, 1 quad, 1 product
  static constexpr int kMostDepth = 256;  // until a carry: 64 * 2 * 255 < 2^15
  static QLA_INLINE Quad quad(const uint8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return {_mm256_set1_epi32(four)};
  }
  template <int>
  static QLA_INLINE TernaryColumns columns(const int8_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
  }
};

}  // namespace
}  // namespace qla
