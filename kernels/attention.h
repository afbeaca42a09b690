// One head of one sequence, for every instruction set: the softmax, its column sums and the loop
// over blocks of 16 queries are written once; the two bf16 products come from a Products class
// (attention_fma.h, attention_amx.cpp). Textually included after one of simd/*.h.
//
// Per block of 16 queries:
//   S = Q K^T                      (products)   fp32, n columns
//   E = 2^(S * c - max * c)        c = scale * log2(e); E in (0, 1], exactly 0 beyond n
//   sum of E per query             16 virtual lanes and the fixed tree
//   column sums += E / sum         only when somebody asked: queries ascending, blocks ascending
//   out = (bf16(E) V) / sum        (products)
// Dividing after P.V instead of before saves a pass when no scores are wanted, and gives the same
// bits either way.
#pragma once

#include "kernels.h"

namespace qla {
namespace {

constexpr int kQueries = 16;

QLA_INLINE int round_up(int x, int multiple) { return (x + multiple - 1) / multiple * multiple; }

// 2^t for t <= 0, 2^0 is exact, |relative error| <= 1.7e-7 with all roundings
// (tests/test_polynomials.py); below 2^-125 it stays there, which bf16 and fp32 sums next to 2^0
// cannot see.
QLA_INLINE f32x16 exp2_nonpositive(f32x16 t) {
  t = max(t, set1(-125.0f));
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

// Scratch, in this order; sizes in bytes.
struct AttentionScratch {
  float* s;        // (16, ld) scores, then E
  void* products;  // whatever the Products class packs
  int ld;          // n rounded up to 32: a whole bf16 k block

  explicit AttentionScratch(const AttentionArgs& a) {
    ld = round_up(a.n, 32);
    s = static_cast<float*>(a.scratch);
    products = s + static_cast<size_t>(kQueries) * ld;
  }
};

// E of one query in place of S; returns 1 / sum.
QLA_INLINE float softmax_row(float* s, int n, int ld, float scale_log2e) {
  const int whole = n / 16 * 16, tail = n - whole;
  f32x16 biggest = set1(-3.4028235e38f);
  for (int j = 0; j < whole; j += 16) biggest = max(biggest, load(s + j));
  float peak = reduce_max(biggest);
  for (int j = whole; j < n; ++j) peak = s[j] > peak ? s[j] : peak;
  const f32x16 c = set1(scale_log2e), shift = set1(-peak * scale_log2e);
  f32x16 sum = zero();
  for (int j = 0; j < whole; j += 16) {
    const f32x16 e = exp2_nonpositive(fma(load(s + j), c, shift));
    store(s + j, e);
    sum = sum + e;
  }
  int j = whole;
  if (tail > 0) {
    const f32x16 e = keep_first(exp2_nonpositive(fma(load(s + j), c, shift)), tail);
    store(s + j, e);
    sum = sum + e;
    j += 16;
  }
  for (; j < ld; j += 16) store(s + j, zero());
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

template <typename Products>
void attention(const AttentionArgs& a) {
  AttentionScratch w(a);
  Products products(a, w);
  const float scale_log2e = a.scale * 1.44269504f;
  for (int q0 = 0; q0 < a.n; q0 += kQueries) {
    const int rows = a.n - q0 < kQueries ? a.n - q0 : kQueries;
    products.scores(q0, rows);
    float inverse[kQueries];
    for (int r = 0; r < rows; ++r) {
      inverse[r] = softmax_row(w.s + static_cast<size_t>(r) * w.ld, a.n, w.ld, scale_log2e);
    }
    if (a.column_sum) add_column_sums(w, inverse, rows, a.n, q0 == 0, a.column_sum);
    products.values(q0, rows, inverse);
  }
}

}  // namespace
}  // namespace qla
