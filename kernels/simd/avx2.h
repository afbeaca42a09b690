// Sixteen virtual lanes on AVX2 + FMA: two ymm. Included only by files compiled with AVX2 flags.
// simd/ref.h defines the meaning of every function here; the three headers must agree to the bit.
#pragma once

#include <immintrin.h>

#include <cstdint>

#define QLA_INLINE inline __attribute__((always_inline))

namespace qla {
namespace {

struct f32x16 {
  __m256 lo, hi;
};
struct i32x16 {
  __m256i lo, hi;
};

QLA_INLINE f32x16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
QLA_INLINE f32x16 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
QLA_INLINE i32x16 set1(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
QLA_INLINE f32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
QLA_INLINE i32x16 load(const int32_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8))};
}
QLA_INLINE i32x16 bits(f32x16 a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
QLA_INLINE f32x16 as_float(i32x16 a) {
  return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)};
}
QLA_INLINE void store(int32_t* p, i32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), a.hi);
}
QLA_INLINE void store(float* p, f32x16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
QLA_INLINE f32x16 operator+(f32x16 a, f32x16 b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
QLA_INLINE f32x16 operator-(f32x16 a, f32x16 b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
QLA_INLINE f32x16 operator*(f32x16 a, f32x16 b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
QLA_INLINE f32x16 operator/(f32x16 a, f32x16 b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
QLA_INLINE i32x16 operator&(i32x16 a, i32x16 b) {
  return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)};
}
QLA_INLINE i32x16 operator|(i32x16 a, i32x16 b) {
  return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)};
}
QLA_INLINE i32x16 operator-(i32x16 a, i32x16 b) {
  return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)};
}
QLA_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
QLA_INLINE f32x16 fnma(f32x16 a, f32x16 b, f32x16 c) {
  return {_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi)};
}
QLA_INLINE f32x16 min(f32x16 a, f32x16 b) {
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
QLA_INLINE f32x16 max(f32x16 a, f32x16 b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
QLA_INLINE __m256 clamp_magnitude(__m256 x, __m256 limit) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return _mm256_or_ps(_mm256_min_ps(_mm256_andnot_ps(sign, x), limit), _mm256_and_ps(sign, x));
}
QLA_INLINE f32x16 clamp_magnitude(f32x16 x, float limit) {
  const __m256 all = _mm256_set1_ps(limit);
  return {clamp_magnitude(x.lo, all), clamp_magnitude(x.hi, all)};
}
QLA_INLINE f32x16 where_above(f32x16 x, float limit, f32x16 a) {
  const __m256 all = _mm256_set1_ps(limit);
  return {_mm256_and_ps(_mm256_cmp_ps(x.lo, all, _CMP_GT_OQ), a.lo),
          _mm256_and_ps(_mm256_cmp_ps(x.hi, all, _CMP_GT_OQ), a.hi)};
}
QLA_INLINE f32x16 square_root(f32x16 a) { return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)}; }
QLA_INLINE f32x16 to_float(i32x16 a) {
  return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)};
}
QLA_INLINE i32x16 to_int(f32x16 a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }

QLA_INLINE __m256i bf16_bits(__m256 a) {
  const __m256i x = _mm256_castps_si256(a);
  const __m256i lsb = _mm256_and_si256(_mm256_srli_epi32(x, 16), _mm256_set1_epi32(1));
  return _mm256_add_epi32(x, _mm256_add_epi32(lsb, _mm256_set1_epi32(0x7fff)));
}
QLA_INLINE void store_bf16(uint16_t* p, f32x16 a) {
  const __m256i lo = _mm256_srli_epi32(bf16_bits(a.lo), 16);
  const __m256i hi = _mm256_srli_epi32(bf16_bits(a.hi), 16);
  // packus works within 128-bit halves; the permute puts the four quarters back in order.
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(lo, hi), 0xd8);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), packed);
}
QLA_INLINE __m256 load8_bf16(const uint16_t* p) {
  const __m256i x = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
}
QLA_INLINE f32x16 load_bf16(const uint16_t* p) { return {load8_bf16(p), load8_bf16(p + 8)}; }
QLA_INLINE f32x16 load_s8(const int8_t* p) {
  const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(x, 8)))};
}
QLA_INLINE void store_u8(uint8_t* p, i32x16 a) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xd8);
  const __m128i bytes =
      _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}

// Clamp to [0, 255].
QLA_INLINE void store_u8(uint8_t* p, i32x16 a, i32x16 b, i32x16 c, i32x16 d) {
  // packs and packus work within 128-bit halves; the permute puts the eight quads back in order.
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i ab =
      _mm256_packus_epi16(_mm256_packs_epi32(a.lo, a.hi), _mm256_packs_epi32(b.lo, b.hi));
  const __m256i cd =
      _mm256_packus_epi16(_mm256_packs_epi32(c.lo, c.hi), _mm256_packs_epi32(d.lo, d.hi));
  __m256i* to = reinterpret_cast<__m256i*>(p);
  _mm256_storeu_si256(to, _mm256_permutevar8x32_epi32(ab, order));
  _mm256_storeu_si256(to + 1, _mm256_permutevar8x32_epi32(cd, order));
}
QLA_INLINE void store_low_bytes(uint8_t* p, i32x16 a) {
  const __m256i low = _mm256_set1_epi32(0xff);
  store_u8(p, {_mm256_and_si256(a.lo, low), _mm256_and_si256(a.hi, low)});
}

QLA_INLINE __m256i interleave_bytes(__m256i a, __m256i b, __m256i c, __m256i d) {
  const __m256i low = _mm256_set1_epi32(0xff);
  const __m256i ab =
      _mm256_or_si256(_mm256_and_si256(a, low), _mm256_slli_epi32(_mm256_and_si256(b, low), 8));
  const __m256i cd =
      _mm256_or_si256(_mm256_slli_epi32(_mm256_and_si256(c, low), 16), _mm256_slli_epi32(d, 24));
  return _mm256_or_si256(ab, cd);
}
QLA_INLINE i32x16 interleave_bytes(i32x16 a, i32x16 b, i32x16 c, i32x16 d) {
  return {interleave_bytes(a.lo, b.lo, c.lo, d.lo), interleave_bytes(a.hi, b.hi, c.hi, d.hi)};
}

struct Bytes64 {
  __m256i lo, hi;
};
QLA_INLINE __m256i load_bytes(const int8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
QLA_INLINE Bytes64 low_halves(const int8_t* p) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(load_bytes(p), mask), _mm256_and_si256(load_bytes(p + 32), mask)};
}
QLA_INLINE Bytes64 high_halves(const int8_t* p) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(_mm256_srli_epi16(load_bytes(p), 4), mask),
          _mm256_and_si256(_mm256_srli_epi16(load_bytes(p + 32), 4), mask)};
}
QLA_INLINE Bytes64 look_up(const int8_t (&table)[16], Bytes64 index) {
  const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  const __m256i twice = _mm256_broadcastsi128_si256(entries);
  return {_mm256_shuffle_epi8(twice, index.lo), _mm256_shuffle_epi8(twice, index.hi)};
}
QLA_INLINE void store(int8_t* p, Bytes64 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), a.hi);
}

struct Magnitudes {
  __m256i lo, hi;
};
QLA_INLINE Magnitudes magnitudes(const uint16_t* p) {
  const __m256i magnitude = _mm256_set1_epi16(0x7fff);
  const __m256i* from = reinterpret_cast<const __m256i*>(p);
  return {_mm256_and_si256(_mm256_loadu_si256(from), magnitude),
          _mm256_and_si256(_mm256_loadu_si256(from + 1), magnitude)};
}
QLA_INLINE Magnitudes max(Magnitudes a, Magnitudes b) {
  return {_mm256_max_epu16(a.lo, b.lo), _mm256_max_epu16(a.hi, b.hi)};
}
QLA_INLINE float reduce_max(Magnitudes a) {
  const __m256i m16 = _mm256_max_epu16(a.lo, a.hi);
  const __m128i m8 = _mm_max_epu16(_mm256_castsi256_si128(m16), _mm256_extracti128_si256(m16, 1));
  // The instruction finds a smallest one.
  const __m128i ones = _mm_set1_epi16(-1);
  const __m128i m = _mm_xor_si128(_mm_minpos_epu16(_mm_xor_si128(m8, ones)), ones);
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_slli_epi32(m, 16)));
}
QLA_INLINE void store(uint16_t* p, Magnitudes a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p) + 1, a.hi);
}

QLA_INLINE float reduce_add(f32x16 a) {
  const __m256 s8 = _mm256_add_ps(a.lo, a.hi);
  const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}
QLA_INLINE float reduce_max(f32x16 a) {
  const __m256 s8 = _mm256_max_ps(a.lo, a.hi);
  const __m128 s4 = _mm_max_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_max_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_max_ss(s2, _mm_movehdup_ps(s2)));
}
QLA_INLINE float reduce_min(f32x16 a) {
  const __m256 s8 = _mm256_min_ps(a.lo, a.hi);
  const __m128 s4 = _mm_min_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_min_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_min_ss(s2, _mm_movehdup_ps(s2)));
}

}  // namespace
}  // namespace qla
