// One head of one sequence, for every instruction set: quantization of Q, K and V, the softmax, its
// column sums and the loop over blocks of 16 queries are written once; the two integer products
// come from a Products class (attention_dot.h, attention_amx.cpp). Textually included after a simd
// header.
//
// Per head
//   K  s8, symmetric, one scale per key;  V  s8, symmetric, one scale per column
// Per block of 16 queries
//   Q  u8 = s8 + 128, symmetric, one scale per query
//   S = Q K^T                     exact int32, the 128 taken back by -128 * sum of the key
//   E = 2^(S * ck - max)          ck = both scales * softmax scale * log2(e); 0 <= E <= 1
//   sum of E per query            fp32, 16 virtual lanes and the fixed tree
//   column sums += E / sum        only when somebody asked: queries ascending, blocks ascending
//   out = (u8(255 E) V) / sum     exact int32, then the scales
// E is relative to its row's maximum, so 255 steps are spent on the weights that matter; dividing
// after P.V saves a pass when no scores are wanted, and gives the same bits either way.
#pragma once

#include "attention_scratch.h"
#include "kernels.h"
#include "rounding.h"

namespace qla {
namespace {

// 2^min(t, 0); 2^0 is exact, |relative error| <= 1.02e-4 (tests/test_polynomials.py), which is a
// fortieth of what the u8 weights resolve; 0 below the normal numbers.
QLA_INLINE f32x16 exp2_nonpositive(f32x16 t) {
  t = min(t, zero());
  const f32x16 n = round_even(t);
  const f32x16 f = t - n;
  f32x16 p = set1(0x1.c2a228p-5f);
  p = fma(p, f, set1(0x1.f00c56p-3f));
  p = fma(p, f, set1(0x1.62f5fcp-1f));
  p = fma(p, f, set1(0x1p+0f));
  return scale_exponent(p, n);
}

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
    row_scales(key, here, a.head_dim, w.key_scale + j, inverse);
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
    store(w.key_offset + j, set1(0) - total(offset));
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

// One query: S becomes E (kept only if column sums will want it), u8(255 E); returns 1 / sum of E.
QLA_INLINE float softmax_row(const AttentionScratch& w, int r, int n, float scale_log2e,
                             bool keep_e) {
  float* s = w.s + static_cast<size_t>(r) * w.ld;
  const int32_t* s_int = w.s_int + static_cast<size_t>(r) * w.ld;
  uint8_t* weights = w.weights + static_cast<size_t>(r) * w.ld;
  const int whole = n / 16 * 16, tail = n - whole;
  constexpr float kLowest = -3.4028235e38f;
  f32x16 biggest = set1(kLowest);
  const auto scaled = [&](int j) {
    const f32x16 x = to_float(load(s_int + j)) * load(w.key_scale + j);
    store(s + j, x);
    return x;
  };
  for (int j = 0; j < whole; j += 16) biggest = max(biggest, scaled(j));
  if (tail > 0) biggest = max(biggest, keep_first(scaled(whole), tail, kLowest));
  const float peak = reduce_max(biggest);

  const f32x16 c = set1(scale_log2e), shift = set1(-peak * scale_log2e);
  const f32x16 steps = set1(255.0f), round = set1(kRound);
  f32x16 sum = zero();
  const auto weight = [&](int j) { return exp2_nonpositive(fma(load(s + j), c, shift)); };
  const auto take = [&](int j, f32x16 e) {
    if (keep_e) store(s + j, e);
    store_low_bytes(weights + j, bits(fma(e, steps, round)));
    sum = sum + e;
  };
  for (int j = 0; j < whole; j += 16) take(j, weight(j));
  if (tail > 0) take(whole, keep_first(weight(whole), tail, 0.0f));
  for (int j = round_up(n, 16); j < w.ld; j += 16) store_low_bytes(weights + j, set1(0));
  // The largest E is 1 up to the rounding of peak * c, which only logits beyond 2^24 make felt:
  // then the sum may even be 0, and what matters is that the result is a number.
  const float total_e = reduce_add(sum);
  return 1.0f / (total_e > 0.5f ? total_e : 0.5f);
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
  return to_float(sum) * (set1(inverse * (1.0f / 255.0f)) * load(w.value_scale + d));
}

// Products: scores(rows) fills s_int; values(q0, rows, inverse) writes `rows` output rows. Both may
// compute all 16 rows of a block: the scratch has them.
template <typename Products>
void attention(const AttentionArgs& a) {
  const AttentionScratch w(a.scratch, a.n, a.head_dim);
  pack_keys(a, w);
  pack_values(a, w);
  __builtin_memset(w.queries, 0, kQueries * kRowBytes);
  __builtin_memset(w.weights, 0, static_cast<size_t>(kQueries) * w.ld);
  const Products products(a, w);
  const float scale_log2e = a.scale * 1.44269504f;
  for (int q0 = 0; q0 < a.n; q0 += kQueries) {
    const int rows = a.n - q0 < kQueries ? a.n - q0 : kQueries;
    alignas(64) float step[kQueries], inverse[kQueries];
    quantize_queries(a, w, q0, rows, step);
    products.scores(rows);
    for (int r = 0; r < rows; ++r) {
      inverse[r] = softmax_row(w, r, a.n, step[r] * scale_log2e, a.column_sum != nullptr);
    }
    if (a.column_sum) add_column_sums(w, inverse, rows, a.n, q0 == 0, a.column_sum);
    products.values(q0, rows, inverse);
  }
}

}  // namespace
}  // namespace qla
