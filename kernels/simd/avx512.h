// Sixteen virtual lanes on AVX-512: one zmm. Included only by files compiled with AVX-512 flags.
// simd/ref.h defines the meaning of every function here; the three headers must agree to the bit.
#pragma once

#include <immintrin.h>

#include <cstdint>

#define QLA_INLINE inline __attribute__((always_inline))
#define QLA_BLOCK_FUNCTION

namespace qla {
namespace {

struct f32x16 {
  __m512 v;
};
struct i32x16 {
  __m512i v;
};

// Four u8 activations, the same for all columns; 16 columns of 4 s8 weights; their running sums.
struct Quad {
  __m512i v;
};
struct Columns {
  __m512i v;
};
struct Dot16 {
  __m512i v;
};

// Register blocking: 32 zmm.
constexpr int kGemmPanels = 4;
constexpr int kScoreQueries = 4, kScorePanels = 4;  // 16 sums, 4 keys, 1 quad
constexpr int kValueQueries = 8, kValuePanels = 2;  // 16 sums, 2 values, 1 quad

QLA_INLINE Quad load_quad(const uint8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  return {_mm512_set1_epi32(four)};
}
QLA_INLINE Columns load_columns(const int8_t* p) { return {_mm512_loadu_si512(p)}; }
QLA_INLINE void accumulate(Dot16& sum, Quad x, const Columns& w) {
  sum.v = _mm512_dpbusd_epi32(sum.v, x.v, w.v);
}

struct Bytes64 {
  __m512i v;
};
QLA_INLINE Bytes64 low_halves(const int8_t* p) {
  return {_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(15))};
}
QLA_INLINE Bytes64 high_halves(const int8_t* p) {
  const __m512i words = _mm512_srli_epi16(_mm512_loadu_si512(p), 4);
  return {_mm512_and_si512(words, _mm512_set1_epi8(15))};
}
QLA_INLINE Bytes64 look_up(const int8_t (&table)[16], Bytes64 index) {
  const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(entries), index.v)};
}
QLA_INLINE void store(int8_t* p, Bytes64 a) { _mm512_storeu_si512(p, a.v); }
QLA_INLINE Columns columns_of(Bytes64 a) { return {a.v}; }

QLA_INLINE i32x16 total(const Dot16& sum) { return {sum.v}; }
QLA_INLINE Dot16 dot_from(i32x16 start) { return {start.v}; }

// What a GEMM multiplies with, whatever the weights.
struct ByteDots {
  using Activation = uint8_t;
  template <int>
  using Sum = Dot16;
  template <int>
  static constexpr int kPasses = 1;
  static constexpr bool kWidens = false;
  static constexpr int kRows = 6;  // 24 sums, 4 weights, 1 quad
  static constexpr int kMostDepth = 0;
  static QLA_INLINE Quad quad(const uint8_t* p) { return load_quad(p); }
  template <int>
  static QLA_INLINE Columns columns(const int8_t* p) {
    return load_columns(p);
  }
  static const uint8_t* activations(const uint8_t* from, int, uint16_t*) { return from; }
};
using TernaryDots = ByteDots;

QLA_INLINE f32x16 zero() { return {_mm512_setzero_ps()}; }
QLA_INLINE f32x16 set1(float x) { return {_mm512_set1_ps(x)}; }
QLA_INLINE i32x16 set1(int32_t x) { return {_mm512_set1_epi32(x)}; }
QLA_INLINE f32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
QLA_INLINE i32x16 load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
QLA_INLINE i32x16 bits(f32x16 a) { return {_mm512_castps_si512(a.v)}; }
QLA_INLINE f32x16 as_float(i32x16 a) { return {_mm512_castsi512_ps(a.v)}; }
QLA_INLINE void store(int32_t* p, i32x16 a) { _mm512_storeu_si512(p, a.v); }
QLA_INLINE void store(float* p, f32x16 a) { _mm512_storeu_ps(p, a.v); }
QLA_INLINE f32x16 operator+(f32x16 a, f32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
QLA_INLINE f32x16 operator-(f32x16 a, f32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
QLA_INLINE f32x16 operator*(f32x16 a, f32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
QLA_INLINE f32x16 operator/(f32x16 a, f32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
QLA_INLINE i32x16 operator&(i32x16 a, i32x16 b) { return {_mm512_and_si512(a.v, b.v)}; }
QLA_INLINE i32x16 operator|(i32x16 a, i32x16 b) { return {_mm512_or_si512(a.v, b.v)}; }
QLA_INLINE i32x16 operator-(i32x16 a, i32x16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
QLA_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
QLA_INLINE f32x16 fnma(f32x16 a, f32x16 b, f32x16 c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
QLA_INLINE f32x16 min(f32x16 a, f32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
QLA_INLINE f32x16 max(f32x16 a, f32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
QLA_INLINE f32x16 clamp_magnitude(f32x16 x, float limit) {
  constexpr int kSmallerMagnitudeSignOfFirst = 2;
  return {_mm512_range_ps(x.v, _mm512_set1_ps(limit), kSmallerMagnitudeSignOfFirst)};
}
QLA_INLINE f32x16 where_above(f32x16 x, float limit, f32x16 a) {
  const __mmask16 above = _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_GT_OQ);
  return {_mm512_maskz_mov_ps(above, a.v)};
}
QLA_INLINE f32x16 square_root(f32x16 a) { return {_mm512_sqrt_ps(a.v)}; }
QLA_INLINE f32x16 to_float(i32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
QLA_INLINE i32x16 to_int(f32x16 a) { return {_mm512_cvtps_epi32(a.v)}; }

// bf16 is fp32's upper half, rounded to nearest even. Inputs are results of FTZ arithmetic, so
// there are no denormals to treat.
QLA_INLINE i32x16 bf16_bits(f32x16 a) {
  const __m512i x = _mm512_castps_si512(a.v);
  const __m512i lsb = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
  return {_mm512_add_epi32(x, _mm512_add_epi32(lsb, _mm512_set1_epi32(0x7fff)))};
}
QLA_INLINE void store_bf16(uint16_t* p, f32x16 a) {
  const __m512i x = _mm512_srli_epi32(bf16_bits(a).v, 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(x));
}
QLA_INLINE f32x16 load_bf16(const uint16_t* p) {
  const __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(x, 16))};
}
QLA_INLINE f32x16 load_s8(const int8_t* p) {
  const __m512i x = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return {_mm512_cvtepi32_ps(x)};
}
QLA_INLINE void store_low_bytes(uint8_t* p, i32x16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}
// Clamp to [0, 255].
QLA_INLINE void store_u8(uint8_t* p, i32x16 a, i32x16 b, i32x16 c, i32x16 d) {
  // packs and packus work within 128-bit quarters; the permute puts these back in order.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i ab = _mm512_packs_epi32(a.v, b.v), cd = _mm512_packs_epi32(c.v, d.v);
  _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, _mm512_packus_epi16(ab, cd)));
}
QLA_INLINE i32x16 interleave_bytes(i32x16 a, i32x16 b, i32x16 c, i32x16 d) {
  const __m512i low = _mm512_set1_epi32(0xff);
  const __m512i ab =
      _mm512_or_si512(_mm512_and_si512(a.v, low), _mm512_slli_epi32(_mm512_and_si512(b.v, low), 8));
  const __m512i cd = _mm512_or_si512(_mm512_slli_epi32(_mm512_and_si512(c.v, low), 16),
                                     _mm512_slli_epi32(d.v, 24));
  return {_mm512_or_si512(ab, cd)};
}

struct Magnitudes {
  __m512i v;
};
QLA_INLINE Magnitudes magnitudes(const uint16_t* p) {
  return {_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi16(0x7fff))};
}
QLA_INLINE Magnitudes max(Magnitudes a, Magnitudes b) { return {_mm512_max_epu16(a.v, b.v)}; }
QLA_INLINE float reduce_max(Magnitudes a) {
  const __m256i m16 =
      _mm256_max_epu16(_mm512_castsi512_si256(a.v), _mm512_extracti64x4_epi64(a.v, 1));
  const __m128i m8 = _mm_max_epu16(_mm256_castsi256_si128(m16), _mm256_extracti128_si256(m16, 1));
  // The instruction finds a smallest one.
  const __m128i ones = _mm_set1_epi16(-1);
  const __m128i m = _mm_xor_si128(_mm_minpos_epu16(_mm_xor_si128(m8, ones)), ones);
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_slli_epi32(m, 16)));
}
QLA_INLINE void store(uint16_t* p, Magnitudes a) { _mm512_storeu_si512(p, a.v); }

// The one reduction tree: lanes l and l+8, then l and l+4, l+2, l+1.
QLA_INLINE float reduce_add(f32x16 a) {
  const __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}
QLA_INLINE float reduce_max(f32x16 a) { return _mm512_reduce_max_ps(a.v); }
QLA_INLINE float reduce_min(f32x16 a) { return _mm512_reduce_min_ps(a.v); }

}  // namespace
}  // namespace qla
