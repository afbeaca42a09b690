// One head of one sequence, for every instruction set: quantization of Q, K and V, the softmax, its
// column sums and the loop over blocks of 16 queries are written once. The two integer products
// come from a Products class (attention_dot.h, attention_amx.cpp); what a model adds to its logits,
// from a Bias class. Textually included after a simd header.
//
// Per head
//   K  s8, symmetric, one scale per key;  V  s8, symmetric, one scale per column
// Per block of 16 queries
//   Q  u8 = s8 + 128, symmetric, one scale per query
//   S = Q K^T                     exact int32, the 128 taken back by -128 * sum of the key
//   E = 255 * 2^(S * ck - max)    ck = both scales * softmax scale * log2(e)
//   sum of E per query            fp32, 16 virtual lanes and the fixed tree
//   column sums += E / sum        only when somebody asked: queries ascending, blocks ascending
//   out = (u8(E) V) / sum         exact int32, then the scales
// E is relative to its row's maximum, so 255 steps are spent on the weights that matter; dividing
// after P.V saves a pass when no scores are wanted, and gives the same bits either way.
#pragma once

#include "attention_scratch.h"
#include "kernels.h"
#include "rounding.h"

namespace qla {
namespace {

// 255 * 2^e from t = (127 + e) * 2^23, e <= 1/8: as an integer, t is the bits of 2^floor(e) times a
// mantissa m in [1, 2), off by 2^f / (1 + f) with f = m - 1, for which a cubic in m stands.
// |relative error| <= 6.7e-4 (tests/test_polynomials.py), a fifteenth of what the INT8 scores
// resolve; 0 below the normal numbers.
QLA_INLINE f32x16 weights_from_exponents(f32x16 t) {
  const i32x16 n = to_int(max(t, zero()));
  const f32x16 m = as_float((n & set1(0x7fffff)) | set1(0x3f800000));
  f32x16 p = set1(-0x1.b24c66p+4f);
  p = fma(p, m, set1(0x1.68d00cp+7f));
  p = fma(p, m, set1(-0x1.5f36a4p+8f));
  p = fma(p, m, set1(0x1.c4c822p+8f));
  return as_float(n) * p;
}

// The score of a key beyond the sequence, once its scale has been applied.
constexpr float kNoScore = -3.4028235e38f;
constexpr float kLog2E = 1.44269504f;

// The scales that map [-peak, peak] onto [-127, 127], and their inverses; a peak of 0 has neither.
QLA_INLINE void symmetric_scales(f32x16 peak, float* step, float* inverse) {
  store(step, where_above(peak, 1e-30f, peak / set1(127.0f)));
  store(inverse, where_above(peak, 1e-30f, set1(127.0f) / peak));
}
// Of up to 16 bf16 rows, head_dim wide and contiguous.
QLA_INLINE void row_scales(const uint16_t* x, int rows, int head_dim, float* step, float* inverse) {
  alignas(64) float peak[16] = {};
  for (int r = 0; r < rows; ++r, x += head_dim) {
    Magnitudes m = magnitudes(x);
    for (int d = 32; d < head_dim; d += 32) m = max(m, magnitudes(x + d));
    peak[r] = reduce_max(m);
  }
  symmetric_scales(load(peak), step, inverse);
}

// One row's bytes: s8 for `shift` 0, u8 for 128.
QLA_INLINE void quantize_symmetric(const uint16_t* x, int head_dim, float inverse, float shift,
                                   uint8_t* to) {
  const f32x16 factor = set1(inverse), round = set1(kRound + shift);
  for (int d = 0; d < head_dim; d += 16) {
    store_low_bytes(to + d, bits(fma(load_bf16(x + d), factor, round)));
  }
}

// A key's dims become 4-byte words 64 bytes apart: 16 keys side by side are the columns of a dot
// product.
QLA_INLINE void pack_keys(const AttentionArgs& a, const AttentionScratch& w) {
  alignas(64) uint8_t bytes[kRowBytes];
  alignas(64) float inverse[16];
  constexpr uint8_t kOffset[4] = {128, 128, 128, 128};
  const int quads = a.head_dim / 4;
  for (int j = 0; j < w.ld; j += 16) {
    int8_t* block = w.keys + static_cast<size_t>(j) * kRowBytes;
    const int here = a.n - j < 16 ? (a.n > j ? a.n - j : 0) : 16;
    const int filled = here == 16 ? quads : 0;
    __builtin_memset(block + filled * 64, 0, static_cast<size_t>(16 - filled) * 64);
    const uint16_t* key = a.k + static_cast<size_t>(j) * a.head_dim;
    // The values come next, and from as far away.
    const uint16_t* value = a.v + static_cast<size_t>(j) * a.head_dim;
    for (int i = 0; i < here * a.head_dim; i += 32) __builtin_prefetch(value + i);
    row_scales(key, here, a.head_dim, w.key_scale + j, inverse);
    // Without its lowest two bits, a scale times 3 * 2^22 is exact.
    const f32x16 scale = as_float(bits(load(w.key_scale + j)) & set1(~3));
    store(w.key_scale + j, scale);
    store(w.key_shift + j, scale * set1(-kRound));
    for (int r = here; r < 16; ++r) w.key_shift[j + r] = kNoScore;
    for (int r = 0; r < here; ++r, key += a.head_dim) {
      quantize_symmetric(key, a.head_dim, inverse[r], 0.0f, bytes);
      for (int quad = 0; quad < quads; ++quad) {
        __builtin_memcpy(block + quad * 64 + r * 4, bytes + quad * 4, 4);
      }
    }
    Dot16 offset = dot_from(set1(0));
    for (int quad = 0; quad < quads; ++quad) {
      accumulate(offset, load_quad(kOffset), load_columns(block + quad * 64));
    }
    store(w.key_offset + j, bits(set1(kRound)) - total(offset));
  }
}

QLA_INLINE void pack_values(const AttentionArgs& a, const AttentionScratch& w) {
  alignas(64) uint16_t peak[32];
  alignas(64) float inverse[32];
  for (int half = 0; half < a.head_dim; half += 32) {
    Magnitudes m = magnitudes(a.v + half);
    for (int t = 1; t < a.n; ++t) {
      m = max(m, magnitudes(a.v + static_cast<size_t>(t) * a.head_dim + half));
    }
    store(peak, m);
    for (int l = 0; l < 32; l += 16) {
      symmetric_scales(load_bf16(peak + l), w.value_scale + half + l, inverse + l);
    }
    for (int d = half; d < half + 32; d += 16) {
      const f32x16 factor = load(inverse + d - half), round = set1(kRound);
      const auto token = [&](int t) {
        if (t >= a.n) return set1(0);
        return bits(fma(load_bf16(a.v + static_cast<size_t>(t) * a.head_dim + d), factor, round));
      };
      for (int t = 0; t < w.ld; t += 4) {
        int8_t* to = w.values + static_cast<size_t>(t / 64) * 64 * a.head_dim + d / 16 * 1024 +
                     t % 64 / 4 * 64;
        store(reinterpret_cast<int32_t*>(to),
              interleave_bytes(token(t), token(t + 1), token(t + 2), token(t + 3)));
      }
    }
  }
}

// u8 rows of the block's queries; their steps.
QLA_INLINE void quantize_queries(const AttentionArgs& a, const AttentionScratch& w, int q0,
                                 int rows, float* step) {
  alignas(64) float inverse[kQueries];
  const uint16_t* query = a.q + static_cast<size_t>(q0) * a.head_dim;
  row_scales(query, rows, a.head_dim, step, inverse);
  for (int r = 0; r < rows; ++r, query += a.head_dim) {
    quantize_symmetric(query, a.head_dim, inverse[r], 128.0f, w.queries + r * kRowBytes);
  }
}

// What 16 keys bring to the scores of every query.
struct KeyTerms {
  int j;
  f32x16 step, shift;
  QLA_INLINE KeyTerms(const AttentionScratch& w, int first_key)
      : j(first_key), step(load(w.key_scale + j)), shift(load(w.key_shift + j)) {}

  // Query r's scores, once the first product has left them as the bits of kRound + S.
  QLA_INLINE void scale(const AttentionScratch& w, int r, i32x16 sum, f32x16& biggest) const {
    const f32x16 x = fma(as_float(sum), step, shift);
    store(w.s + static_cast<size_t>(r) * w.ld + j, x);
    biggest = max(biggest, x);
  }
};

// What a query's scores are multiplied by. Logits beyond 2^20, which only a hostile package has,
// are taken for smaller ones, so that the largest E stays near 255; and padding must get none of
// the weight even where a query has no scale.
QLA_INLINE f32x16 bounded_scale(f32x16 scale, f32x16 peak) {
  const f32x16 highest = set1(0x1p20f), lowest = set1(1e-30f);
  return max(min(scale, highest / max(max(peak, zero() - peak), lowest)), lowest);
}

// Exponents of a query's scores are score * factor + shift, in units of 2^-23.
QLA_INLINE void exponent_terms(f32x16 scale, f32x16 peak, float* factor, float* shift) {
  const f32x16 unit = set1(0x1p23f);
  const f32x16 c = bounded_scale(scale, peak) * unit;
  store(factor, c);
  store(shift, fma(zero() - peak, c, set1(127.0f) * unit));
}

// One query: scores become E (kept only if column sums will want it) and u8(E); returns the sum of
// E.
template <bool kColumnSums>
QLA_INLINE float softmax_row(const AttentionScratch& w, int r, int n, float factor, float shift) {
  float* s = w.s + static_cast<size_t>(r) * w.ld;
  uint8_t* weights = w.weights + static_cast<size_t>(r) * w.ld;
  const f32x16 factors = set1(factor), shifts = set1(shift);
  f32x16 sum = zero();
  const auto weight = [&](int j) {
    const f32x16 e = weights_from_exponents(fma(load(s + j), factors, shifts));
    if constexpr (kColumnSums) store(s + j, e);
    sum = sum + e;
    return to_int(e);
  };
  int j = 0;
  for (; j + 48 < n; j += 64) {
    const i32x16 e0 = weight(j), e1 = weight(j + 16), e2 = weight(j + 32), e3 = weight(j + 48);
    store_u8(weights + j, e0, e1, e2, e3);
  }
  if (j < n) {
    const i32x16 none = set1(0), e0 = weight(j);
    const i32x16 e1 = j + 16 < n ? weight(j + 16) : none, e2 = j + 32 < n ? weight(j + 32) : none;
    store_u8(weights + j, e0, e1, e2, none);
  }
  return reduce_add(sum);
}

QLA_INLINE void add_column_sums(const AttentionScratch& w, const float* inverse, int rows, int n,
                                bool first_block, float* column_sum) {
  for (int j = 0; j < n; j += 16) {
    f32x16 block = zero();
    for (int r = 0; r < rows; ++r) {
      block = fma(load(w.s + static_cast<size_t>(r) * w.ld + j), set1(inverse[r]), block);
    }
    store(column_sum + j, first_block ? block : load(column_sum + j) + block);
  }
}

// out rows from the second product's int32 sums of one query.
QLA_INLINE f32x16 scale_output(const AttentionScratch& w, i32x16 sum, int d, float inverse) {
  return to_float(sum) * (set1(inverse) * load(w.value_scale + d));
}

// Output rows lie far apart, each on lines of its own: asked for now, they are here when the block
// is done.
QLA_INLINE void fetch_output(const AttentionArgs& a, int q0, int rows) {
  for (int r = 0; r < rows; ++r) {
    const float* out = a.out + static_cast<size_t>(q0 + r) * a.ld_out;
    for (int d = 0; d < a.head_dim; d += 16) __builtin_prefetch(out + d, 1);
  }
}

// A Bias with kAdds is made from the call's arguments, and bias(query, j) is what it adds to the
// logits of a query and keys j .. j + 15; beyond the last key any number will do.
struct NoBias {
  static constexpr bool kAdds = false;
};

// Scores become logits times log2(e), their bias included; `peak` follows.
template <typename Bias>
QLA_INLINE void add_bias(const Bias& bias, const AttentionScratch& w, int q0, int rows, int n,
                         f32x16 scale_log2e, float* peak) {
  alignas(64) float scale[kQueries];
  store(scale, bounded_scale(scale_log2e, load(peak)));
  for (int r = 0; r < rows; ++r) {
    float* s = w.s + static_cast<size_t>(r) * w.ld;
    f32x16 biggest = set1(kNoScore);
    for (int j = 0; j < n; j += 16) {
      const f32x16 x = fma(bias(q0 + r, j), set1(kLog2E), load(s + j) * set1(scale[r]));
      store(s + j, x);
      biggest = max(biggest, x);
    }
    peak[r] = reduce_max(biggest);
  }
}

// Products: scores(rows, peak) leaves in w.s the scores of `rows` queries, and the largest of each
// in peak; values(q0, rows, inverse) writes `rows` output rows. Both may compute all 16 rows of a
// block: the scratch has them.
template <typename Products, typename Bias, bool kColumnSums>
void attend(const AttentionArgs& a) {
  const AttentionScratch w(a.scratch, a.n, a.head_dim);
  pack_keys(a, w);
  pack_values(a, w);
  __builtin_memset(w.queries, 0, kQueries * kRowBytes);
  __builtin_memset(w.weights, 0, static_cast<size_t>(kQueries) * w.ld);
  const Products products(a, w);
  const f32x16 scale_log2e = set1(a.scale * kLog2E);
  alignas(64) float step[kQueries] = {}, peak[kQueries] = {}, sum[kQueries] = {};
  alignas(64) float factor[kQueries], shift[kQueries], inverse[kQueries];
  for (int q0 = 0; q0 < a.n; q0 += kQueries) {
    const int rows = a.n - q0 < kQueries ? a.n - q0 : kQueries;
    fetch_output(a, q0, rows);
    quantize_queries(a, w, q0, rows, step);
    products.scores(rows, peak);
    f32x16 scale = load(step) * scale_log2e;
    if constexpr (Bias::kAdds) {
      add_bias(Bias(a), w, q0, rows, a.n, scale, peak);
      scale = set1(1.0f);
    }
    exponent_terms(scale, load(peak), factor, shift);
    for (int r = 0; r < rows; ++r) {
      sum[r] = softmax_row<kColumnSums>(w, r, a.n, factor[r], shift[r]);
    }
    store(inverse, set1(1.0f) / load(sum));
    if constexpr (kColumnSums) add_column_sums(w, inverse, rows, a.n, q0 == 0, a.column_sum);
    products.values(q0, rows, inverse);
  }
}

template <typename Products, typename Bias = NoBias>
void attention(const AttentionArgs& a) {
  return a.column_sum ? attend<Products, Bias, true>(a) : attend<Products, Bias, false>(a);
}

}  // namespace
}  // namespace qla
