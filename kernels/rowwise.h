// What happens to rows of hidden states: LayerNorm, quantization, dot products. Textually included
// after one of simd/*.h. Row lengths are multiples of 64. Every sum runs over 64 virtual lanes, in
// four vectors that do not wait for each other, and ends in the one reduction tree.
//
// Rows go through each step kTogether at a time, and what is one number a row becomes one lane of a
// vector: a row alone would spend most of its time waiting for its own sums, roots and quotients.
#pragma once

#include "kernels.h"
#include "rounding.h"

namespace qla {
namespace {

constexpr int kTogether = 8;  // few enough for L1 between steps at usual widths; at most 16

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

// Lanes i..i+15 of a row before normalization.
QLA_INLINE f32x16 before_norm(const EmbedRow& row, int i) {
  const f32x16 position = load(row.position + i);
  return fma(load_s8(row.word + i), set1(row.word_scale), position) + load(row.token_type + i);
}
QLA_INLINE f32x16 before_norm(const NormRow& row, int i) {
  return load(row.x + i) + load(row.residual + i);
}

template <typename Row>
QLA_INLINE void layer_norm_group(const Row* rows, int count, NormArgs norm, int n) {
  const f32x16 width = set1(static_cast<float>(n));
  alignas(64) float mean[16] = {}, inverse[16] = {};
  for (int r = 0; r < count; ++r) {
    const Row row = rows[r];
    mean[r] = reduce_add(fold(n, zero(), [&](f32x16 sum, int i) {
      const f32x16 x = before_norm(row, i);
      store(row.out + i, x);
      return sum + x;
    }));
  }
  store(mean, load(mean) / width);
  for (int r = 0; r < count; ++r) {
    const f32x16 center = set1(mean[r]);
    inverse[r] = reduce_add(fold(n, zero(), [&, x = rows[r].out](f32x16 sum, int i) {
      const f32x16 centered = load(x + i) - center;
      return fma(centered, centered, sum);
    }));
  }
  store(inverse, set1(1.0f) / square_root(load(inverse) / width + set1(norm.eps)));
  for (int r = 0; r < count; ++r) {
    const f32x16 center = set1(mean[r]), scale = set1(inverse[r]);
    float* const x = rows[r].out;
    for (int i = 0; i < n; i += 16) {
      const f32x16 normal = (load(x + i) - center) * scale;
      store(x + i, fma(normal, load(norm.weight + i), load(norm.bias + i)));
    }
  }
}

template <typename Row>
QLA_INLINE void layer_norm(const Row* rows, int count, const NormArgs& norm, int n) {
  for (int r = 0; r < count; r += kTogether) {
    layer_norm_group(rows + r, count - r < kTogether ? count - r : kTogether, norm, n);
  }
}

// How a group of rows becomes u8.
struct RowScales {
  alignas(64) float scale[16], inverse[16], zero_point[16];
};

// Asymmetric u8: zero is always representable, so lo <= 0 <= hi. A row without range (or with one
// too small to divide by) becomes scale 0, which the GEMM turns into its bias alone.
QLA_INLINE void scale_ranges(f32x16 lo, f32x16 hi, RowScales& to) {
  lo = min(lo, zero());
  const f32x16 range = max(hi, zero()) - lo;
  const f32x16 inverse = where_above(range, 1e-30f, set1(255.0f) / range);
  store(to.scale, where_above(range, 1e-30f, range / set1(255.0f)));
  store(to.inverse, inverse);
  store(to.zero_point, to_float(to_int((zero() - lo) * inverse)));
}

QLA_INLINE void find_scales(const float* const* rows, int count, int n, const float* gelu_max,
                            const QuantizeArgs& how, RowScales& to) {
  if (how.is_static) {
    store(to.scale, set1(how.static_scale));
    store(to.inverse, set1(1.0f / how.static_scale));
    store(to.zero_point, set1(static_cast<float>(how.static_zero)));
    return;
  }
  alignas(64) float lo[16] = {}, hi[16] = {};
  for (int r = 0; r < count; ++r) {
    if (gelu_max) {
      lo[r] = kLeastGelu;
      hi[r] = reduce_max(load(gelu_max + 16 * r));
      continue;
    }
    const float* x = rows[r];
    const Lanes64 least = fold(n, zero(), [&](f32x16 m, int i) { return min(m, load(x + i)); });
    const Lanes64 most = fold(n, zero(), [&](f32x16 m, int i) { return max(m, load(x + i)); });
    lo[r] = reduce_min(min(min(least.v[0], least.v[1]), min(least.v[2], least.v[3])));
    hi[r] = reduce_max(max(max(most.v[0], most.v[1]), max(most.v[2], most.v[3])));
  }
  scale_ranges(load(lo), load(hi), to);
}

// `rounded(i)`: lanes i..i+15, kRound added.
template <typename Rounded>
QLA_INLINE void put_u8(int n, uint8_t* q, Rounded rounded) {
  const auto whole = [&](int i) { return bits(rounded(i)) - bits(set1(kRound)); };
  for (int i = 0; i < n; i += 64) {
    store_u8(q + i, whole(i), whole(i + 16), whole(i + 32), whole(i + 48));
  }
}

QLA_INLINE void quantize_group(const float* const* rows, int count, int n, const float* gelu_max,
                               const QuantizeArgs& how, uint8_t* q, float* scale,
                               float* zero_point) {
  RowScales scales;
  find_scales(rows, count, n, gelu_max, how, scales);
  for (int r = 0; r < count; ++r, q += n) {
    const float* x = rows[r];
    scale[r] = scales.scale[r];
    zero_point[r] = scales.zero_point[r];
    // Zero point and rounding in one addition; 0 and 255 may each be overshot by one.
    const f32x16 factor = set1(scales.inverse[r]), round = set1(kRound + scales.zero_point[r]);
    if (how.is_static) {
      // A static scale may meet a value that no int32 can hold.
      const f32x16 floor = set1(-512.0f), ceiling = set1(512.0f);
      put_u8(n, q, [&](int i) { return max(min(load(x + i) * factor, ceiling), floor) + round; });
    } else {
      put_u8(n, q, [&](int i) { return fma(load(x + i), factor, round); });
    }
  }
}

QLA_INLINE void quantize(const float* const* rows, int count, int n, const float* gelu_max,
                         const QuantizeArgs& how, uint8_t* q, float* scale, float* zero_point) {
  for (int r = 0; r < count; r += kTogether) {
    quantize_group(rows + r, count - r < kTogether ? count - r : kTogether, n,
                   gelu_max ? gelu_max + 16 * r : nullptr, how, q + static_cast<size_t>(r) * n,
                   scale + r, zero_point + r);
  }
}

QLA_INLINE float dot(const float* a, const float* b, int n) {
  return reduce_add(
      fold(n, zero(), [&](f32x16 sum, int i) { return fma(load(a + i), load(b + i), sum); }));
}

}  // namespace
}  // namespace qla
