// What happens to one row of hidden states: LayerNorm, quantization, dot products. Textually
// included after one of simd/*.h. Row lengths are multiples of 64. Every sum runs over 64 virtual
// lanes, in four vectors that do not wait for each other, and ends in the one reduction tree.
#pragma once

#include "kernels.h"
#include "rounding.h"

namespace qla {
namespace {

// Folds vectors 0, 16, 32, .. of a row into four results, element i into lane i mod 64.
struct Lanes64 {
  f32x16 v[4];
};
template <typename Fold>
QLA_INLINE Lanes64 fold(int n, f32x16 from, Fold next) {
  f32x16 a = from, b = from, c = from, d = from;
  for (int i = 0; i < n; i += 64) {
    a = next(a, i);
    b = next(b, i + 16);
    c = next(c, i + 32);
    d = next(d, i + 48);
  }
  return {{a, b, c, d}};
}
QLA_INLINE float reduce_add(const Lanes64& sum) {
  return reduce_add((sum.v[0] + sum.v[1]) + (sum.v[2] + sum.v[3]));
}

// `value(i)` gives lanes i..i+15 of the row before normalization; it is kept in `out` meanwhile.
template <typename Value>
QLA_INLINE void layer_norm(Value value, const NormArgs& norm, int n, float* out) {
  const Lanes64 sum = fold(n, zero(), [&](f32x16 total, int i) {
    const f32x16 x = value(i);
    store(out + i, x);
    return total + x;
  });
  const f32x16 mean = set1(reduce_add(sum) / static_cast<float>(n));
  const Lanes64 squares = fold(n, zero(), [&](f32x16 total, int i) {
    const f32x16 centered = load(out + i) - mean;
    return fma(centered, centered, total);
  });
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
QLA_INLINE void row_scale(float lo, float hi, float* scale, float* inverse, float* zero_point) {
  lo = lo < 0.0f ? lo : 0.0f;
  hi = hi > 0.0f ? hi : 0.0f;
  const float range = hi - lo;
  const bool flat = !(range > 1e-30f);
  *scale = flat ? 0.0f : range / 255.0f;
  *inverse = flat ? 0.0f : 255.0f / range;
  *zero_point = __builtin_nearbyintf(-lo * *inverse);
}

QLA_INLINE void quantize(const float* x, int n, const float* gelu_max, const QuantizeArgs& how,
                         uint8_t* q, float* scale, float* zero_point) {
  float inverse;
  if (how.is_static) {
    *scale = how.static_scale;
    *zero_point = static_cast<float>(how.static_zero);
    inverse = 1.0f / how.static_scale;
  } else {
    f32x16 lo = set1(kLeastGelu), hi;
    if (gelu_max) {
      hi = load(gelu_max);
    } else {
      const f32x16 none = load(x);
      const Lanes64 least = fold(n, none, [&](f32x16 m, int i) { return min(m, load(x + i)); });
      const Lanes64 most = fold(n, none, [&](f32x16 m, int i) { return max(m, load(x + i)); });
      lo = min(min(least.v[0], least.v[1]), min(least.v[2], least.v[3]));
      hi = max(max(most.v[0], most.v[1]), max(most.v[2], most.v[3]));
    }
    row_scale(reduce_min(lo), reduce_max(hi), scale, &inverse, zero_point);
  }
  // Zero point and rounding in one addition; 0 and 255 may each be overshot by one.
  const f32x16 factor = set1(inverse);
  const f32x16 round = set1(kRound + *zero_point);
  const auto put = [&](auto rounded) {
    const auto whole = [&](int i) { return bits(rounded(i)) - bits(set1(kRound)); };
    for (int i = 0; i < n; i += 64) {
      store_u8(q + i, whole(i), whole(i + 16), whole(i + 32), whole(i + 48));
    }
  };
  if (how.is_static) {
    // A static scale may meet a value that no int32 can hold.
    const f32x16 floor = set1(-512.0f), ceiling = set1(512.0f);
    put([&](int i) { return max(min(load(x + i) * factor, ceiling), floor) + round; });
  } else {
    put([&](int i) { return fma(load(x + i), factor, round); });
  }
}

QLA_INLINE float dot(const float* a, const float* b, int n) {
  return reduce_add(
      fold(n, zero(), [&](f32x16 sum, int i) { return fma(load(a + i), load(b + i), sum); }));
}

}  // namespace
}  // namespace qla
