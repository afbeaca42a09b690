// Sixteen virtual lanes on AVX-512: one zmm. Included only by files compiled with AVX-512 flags.
// simd/ref.h defines the meaning of every function here; the three headers must agree to the bit.
#pragma once

#include <immintrin.h>

#include <cstdint>

#define QLA_INLINE inline __attribute__((always_inline))

namespace qla {
namespace {

struct f32x16 {
  __m512 v;
};
struct i32x16 {
  __m512i v;
};

// Register blocking of the FMA attention products: 32 zmm hold 4 x 3 x 2 accumulators for Q.K^T
// (two chains each, see attention_fma.h) and 4 x 2 x 3 for P.V.
constexpr int kQueryBlock = 4, kKeyVectors = 3, kValueQueries = 4, kValueVectors = 2;

QLA_INLINE f32x16 zero() { return {_mm512_setzero_ps()}; }
QLA_INLINE f32x16 set1(float x) { return {_mm512_set1_ps(x)}; }
QLA_INLINE i32x16 set1(int32_t x) { return {_mm512_set1_epi32(x)}; }
QLA_INLINE f32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
QLA_INLINE i32x16 load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
QLA_INLINE void store(float* p, f32x16 a) { _mm512_storeu_ps(p, a.v); }
QLA_INLINE f32x16 operator+(f32x16 a, f32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
QLA_INLINE f32x16 operator-(f32x16 a, f32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
QLA_INLINE f32x16 operator*(f32x16 a, f32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
QLA_INLINE i32x16 operator-(i32x16 a, i32x16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
QLA_INLINE i32x16 operator*(i32x16 a, i32x16 b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
QLA_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
QLA_INLINE f32x16 min(f32x16 a, f32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
QLA_INLINE f32x16 max(f32x16 a, f32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
QLA_INLINE f32x16 to_float(i32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
QLA_INLINE i32x16 to_int(f32x16 a) { return {_mm512_cvtps_epi32(a.v)}; }  // nearest even
QLA_INLINE f32x16 round_even(f32x16 a) { return {_mm512_roundscale_ps(a.v, 0)}; }

// a * 2^n for integral n; a and the result are normal numbers.
QLA_INLINE f32x16 scale_exponent(f32x16 a, f32x16 n) { return {_mm512_scalef_ps(a.v, n.v)}; }

// Lanes at or beyond `count` become zero.
QLA_INLINE f32x16 keep_first(f32x16 a, int count) {
  return {_mm512_maskz_mov_ps(static_cast<__mmask16>((1u << count) - 1), a.v)};
}

// Rounds to bf16 (nearest even), result still held as fp32. Inputs are results of FTZ arithmetic,
// so there are no denormals to treat.
QLA_INLINE i32x16 bf16_bits(f32x16 a) {
  const __m512i x = _mm512_castps_si512(a.v);
  const __m512i lsb = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
  return {_mm512_add_epi32(x, _mm512_add_epi32(lsb, _mm512_set1_epi32(0x7fff)))};
}
QLA_INLINE f32x16 round_bf16(f32x16 a) {
  const __m512i x = _mm512_and_si512(bf16_bits(a).v, _mm512_set1_epi32(int32_t(0xffff0000)));
  return {_mm512_castsi512_ps(x)};
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
// Clamps to [0, 255].
QLA_INLINE void store_u8(uint8_t* p, i32x16 a) {
  const __m512i x = _mm512_max_epi32(a.v, _mm512_setzero_si512());
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtusepi32_epi8(x));
}

// The one reduction tree: lanes l and l+8, then l and l+4, l+2, l+1.
QLA_INLINE float reduce_add(f32x16 a) {
  const __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}
QLA_INLINE float reduce_max(f32x16 a) { return _mm512_reduce_max_ps(a.v); }
QLA_INLINE float reduce_min(f32x16 a) { return _mm512_reduce_min_ps(a.v); }
QLA_INLINE float fma1(float a, float b, float c) {
  return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)));
}

}  // namespace
}  // namespace qla
