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
//   E = 2^(S * ck - max)          ck = both scales * softmax scale * log2(e); 0 < E <= 1
//   sum of E per query            fp32, 16 virtual lanes and the fixed tree
//   column sums += E / sum        only when somebody asked: queries ascending, blocks ascending
//   out = (u8(255 E) V) / sum     exact int32, then the scales
// E is relative to its row's maximum, so 255 steps are spent on the weights that matter; dividing
// after P.V saves a pass when no scores are wanted, and gives the same bits either way.
#pragma once

#include "attention_scratch.h"
#include "kernels.h"

namespace qla {
namespace {

// 2^min(t, 0); 2^0 is exact, |relative error| <= 1.7e-7 with all roundings
// (tests/test_polynomials.py); below 2^-125 it stays there, which fp32 sums next to 2^0 cannot see.
QLA_INLINE f32x16 exp2_nonpositive(f32x16 t) {
  t = max(min(t, zero()), set1(-125.0f));
  const f32x16 n = round_even(t);
  const f32x16 f = t - n;
  f32x16 p = set1(0x1.5bba14p-10f);
  p = fma(p, f, set1(0x1.3cea88p-7f));
  p = fma(p, f, set1(0x1.c6b752p-5f));
  p = fma(p, f, set1(0x1.ebf9bcp-3f));
  p = fma(p, f, set1(0x1.62e42ap-1f));
  p = fma(p, f, set1(0x1p+0f));
  return scale_exponent(p, n);
}

// The scale that maps [-peak, peak] onto [-127, 127], and its inverse; a row of zeros has neither.
struct SymmetricScale {
  float step, inverse;
  explicit QLA_INLINE SymmetricScale(float peak)
      : step(peak > 1e-30f ? peak / 127.0f : 0.0f), inverse(peak > 1e-30f ? 127.0f / peak : 0.0f) {}
};

QLA_INLINE SymmetricScale symmetric_scale(const uint16_t* x, int n) {
  f32x16 peak = abs(load_bf16(x));
  for (int i = 16; i < n; i += 16) peak = max(peak, abs(load_bf16(x + i)));
  return SymmetricScale(reduce_max(peak));
}

// A key's dims become 4-byte words 64 bytes apart: 16 keys side by side are the columns of a dot
// product.
QLA_INLINE void pack_keys(const AttentionArgs& a, const AttentionScratch& w) {
  alignas(64) uint8_t bytes[kRowBytes];
  for (int j = 0; j < w.ld; ++j) {
    int8_t* block = w.keys + static_cast<size_t>(j / 16) * 16 * kRowBytes + j % 16 * 4;
    if (j >= a.n) {
      w.key_scale[j] = 0.0f;
      w.key_offset[j] = 0;
      for (int quad = 0; quad < 16; ++quad) __builtin_memset(block + quad * 64, 0, 4);
      continue;
    }
    const uint16_t* key = a.k + static_cast<size_t>(j) * a.head_dim;
    const SymmetricScale scale = symmetric_scale(key, a.head_dim);
    f32x16 sum = zero();
    for (int d = 0; d < a.head_dim; d += 16) {
      const f32x16 x = round_even(load_bf16(key + d) * set1(scale.inverse));
      sum = sum + x;
      store_u8(bytes + d, to_int(x) + set1(128));
    }
    for (int quad = 0; quad < a.head_dim / 4; ++quad) {
      uint32_t word;
      __builtin_memcpy(&word, bytes + quad * 4, 4);
      word ^= 0x80808080u;  // the 128 taken back, four bytes at once
      __builtin_memcpy(block + quad * 64, &word, 4);
    }
    for (int quad = a.head_dim / 4; quad < 16; ++quad) __builtin_memset(block + quad * 64, 0, 4);
    w.key_scale[j] = scale.step;
    w.key_offset[j] = -128 * static_cast<int32_t>(reduce_add(sum));  // exact: small integers
  }
}

QLA_INLINE void pack_values(const AttentionArgs& a, const AttentionScratch& w) {
  for (int d = 0; d < a.head_dim; d += 16) {
    f32x16 peak = zero();
    for (int t = 0; t < a.n; ++t) {
      peak = max(peak, abs(load_bf16(a.v + static_cast<size_t>(t) * a.head_dim + d)));
    }
    alignas(64) float inverse[16];
    store(inverse, peak);
    for (int l = 0; l < 16; ++l) {
      const SymmetricScale scale(inverse[l]);
      w.value_scale[d + l] = scale.step;
      inverse[l] = scale.inverse;
    }
    const f32x16 factor = load(inverse);
    const auto token = [&](int t) {
      if (t >= a.n) return set1(0);
      return to_int(load_bf16(a.v + static_cast<size_t>(t) * a.head_dim + d) * factor);
    };
    for (int t = 0; t < w.ld; t += 4) {
      int8_t* to = w.values + static_cast<size_t>(t / 64) * 64 * a.head_dim + d / 16 * 1024 +
                   t % 64 / 4 * 64;
      store(reinterpret_cast<int32_t*>(to),
            interleave_bytes(token(t), token(t + 1), token(t + 2), token(t + 3)));
    }
  }
}

// u8 rows of the block's queries; returns their steps.
QLA_INLINE void quantize_queries(const AttentionArgs& a, const AttentionScratch& w, int q0,
                                 int rows, float* step) {
  for (int r = 0; r < rows; ++r) {
    const uint16_t* query = a.q + static_cast<size_t>(q0 + r) * a.head_dim;
    uint8_t* to = w.queries + r * kRowBytes;
    const SymmetricScale scale = symmetric_scale(query, a.head_dim);
    for (int d = 0; d < a.head_dim; d += 16) {
      store_u8(to + d, to_int(load_bf16(query + d) * set1(scale.inverse)) + set1(128));
    }
    step[r] = scale.step;
  }
}

// One query: S becomes E (kept only if column sums will want it), u8(255 E); returns 1 / sum of E.
QLA_INLINE float softmax_row(const AttentionScratch& w, int r, int n, float scale_log2e,
                             bool keep_e) {
  float* s = w.s + static_cast<size_t>(r) * w.ld;
  const int32_t* s_int = w.s_int + static_cast<size_t>(r) * w.ld;
  uint8_t* weights = w.weights + static_cast<size_t>(r) * w.ld;
  const int whole = n / 16 * 16, tail = n - whole;
  f32x16 biggest = set1(-3.4028235e38f);
  for (int j = 0; j < whole; j += 16) {
    const f32x16 x = to_float(load(s_int + j)) * load(w.key_scale + j);
    store(s + j, x);
    biggest = max(biggest, x);
  }
  float peak = reduce_max(biggest);
  if (tail > 0) {
    store(s + whole, to_float(load(s_int + whole)) * load(w.key_scale + whole));
    for (int j = whole; j < n; ++j) peak = s[j] > peak ? s[j] : peak;
  }
  const f32x16 c = set1(scale_log2e), shift = set1(-peak * scale_log2e), steps = set1(255.0f);
  f32x16 sum = zero();
  for (int j = 0; j < n; j += 16) {
    f32x16 e = exp2_nonpositive(fma(load(s + j), c, shift));
    if (j == whole) e = keep_first(e, tail);
    if (keep_e) store(s + j, e);
    store_u8(weights + j, to_int(e * steps));
    sum = sum + e;
  }
  for (int j = round_up(n, 16); j < w.ld; j += 16) store_u8(weights + j, set1(0));
  return 1.0f / reduce_add(sum);
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
    float step[kQueries], inverse[kQueries];
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
