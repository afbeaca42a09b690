// What happens to one row of hidden states: LayerNorm, quantization, dot products. Textually
// included after one of simd/*.h. Row lengths are multiples of 64. Every sum runs over 16 virtual
// lanes and ends in the one reduction tree.
#pragma once

#include "kernels.h"
#include "rounding.h"

namespace qla {
namespace {

// `value(i)` gives lanes i..i+15 of the row before normalization; it is kept in `out` meanwhile.
template <typename Value>
QLA_INLINE void layer_norm(Value value, const NormArgs& norm, int n, float* out) {
  f32x16 sum = zero();
  for (int i = 0; i < n; i += 16) {
    const f32x16 x = value(i);
    store(out + i, x);
    sum = sum + x;
  }
  const f32x16 mean = set1(reduce_add(sum) / static_cast<float>(n));
  f32x16 squares = zero();
  for (int i = 0; i < n; i += 16) {
    const f32x16 centered = load(out + i) - mean;
    squares = fma(centered, centered, squares);
  }
  const float variance = reduce_add(squares) / static_cast<float>(n);
  const f32x16 inverse = set1(1.0f / __builtin_sqrtf(variance + norm.eps));
  for (int i = 0; i < n; i += 16) {
    const f32x16 x = (load(out + i) - mean) * inverse;
    store(out + i, fma(x, load(norm.weight + i), load(norm.bias + i)));
  }
}

QLA_INLINE void embed_norm(const int8_t* word, float word_scale, const float* position,
                           const float* token_type, const NormArgs& norm, int n, float* out) {
  const f32x16 scale = set1(word_scale);
  layer_norm(
      [&](int i) {
        return fma(load_s8(word + i), scale, load(position + i)) + load(token_type + i);
      },
      norm, n, out);
}

QLA_INLINE void residual_norm(const float* x, const float* residual, const NormArgs& norm, int n,
                              float* out) {
  layer_norm([&](int i) { return load(x + i) + load(residual + i); }, norm, n, out);
}

// Asymmetric u8: zero is always representable, so lo <= 0 <= hi. A row without range (or with one
// too small to divide by) becomes scale 0, which the GEMM turns into its bias alone.
QLA_INLINE void row_scale(float lo, float hi, float* scale, float* inverse, int32_t* zero_point) {
  lo = lo < 0.0f ? lo : 0.0f;
  hi = hi > 0.0f ? hi : 0.0f;
  const float range = hi - lo;
  const bool flat = !(range > 1e-30f);
  *scale = flat ? 0.0f : range / 255.0f;
  *inverse = flat ? 0.0f : 255.0f / range;
  *zero_point = static_cast<int32_t>(__builtin_nearbyintf(-lo * *inverse));
}

QLA_INLINE void quantize(const float* x, int n, const float* lane_min, const float* lane_max,
                         const QuantizeArgs& how, uint8_t* q, float* scale, int32_t* zero_point) {
  float inverse;
  if (how.is_static) {
    *scale = how.static_scale;
    *zero_point = how.static_zero;
    inverse = 1.0f / how.static_scale;
  } else {
    f32x16 lo, hi;
    if (lane_min) {
      lo = load(lane_min);
      hi = load(lane_max);
    } else {
      lo = hi = load(x);
      for (int i = 16; i < n; i += 16) {
        lo = min(lo, load(x + i));
        hi = max(hi, load(x + i));
      }
    }
    row_scale(reduce_min(lo), reduce_max(hi), scale, &inverse, zero_point);
  }
  // Zero point and rounding in one addition; 0 and 255 may each be overshot by one.
  const f32x16 factor = set1(inverse);
  const f32x16 round = set1(kRound + static_cast<float>(*zero_point));
  const auto put = [&](int i, f32x16 t) { store_u8(q + i, bits(t) - bits(set1(kRound))); };
  if (!how.is_static) {
    for (int i = 0; i < n; i += 16) put(i, fma(load(x + i), factor, round));
    return;
  }
  // A static scale may meet a value that no int32 can hold.
  const f32x16 floor = set1(-512.0f), ceiling = set1(512.0f);
  for (int i = 0; i < n; i += 16) {
    put(i, max(min(load(x + i) * factor, ceiling), floor) + round);
  }
}

QLA_INLINE float dot(const float* a, const float* b, int n) {
  f32x16 sum = zero();
  for (int i = 0; i < n; i += 16) sum = fma(load(a + i), load(b + i), sum);
  return reduce_add(sum);
}

}  // namespace
}  // namespace qla
