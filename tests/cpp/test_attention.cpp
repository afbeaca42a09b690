// Every attention kernel: against a plain double-precision reading of docs/numerics.md, and equal
// to the bit across instruction sets, over every tail length.
#include <cmath>

#include "attention_reference.h"

namespace qla {
namespace {

TEST(AttentionReference, MatchesDoublePrecision) {
  for (int head_dim : {32, 64}) {
    for (int n : {1, 7, 16, 33, 100}) {
      AttentionProblem p(n, head_dim, 5, 1.0f);
      // A query, a key and a value column without a scale.
      for (int d = 0; d < head_dim; ++d) p.q[n / 2 * head_dim + d] = p.k[n / 3 * head_dim + d] = 0;
      for (int i = 0; i < n; ++i) p.v[i * head_dim + 1] = 0;
      expect_double_precision(p, attend(p, Isa::kRef));
    }
  }
}

// INT8 operands against none at all: what the quantization itself costs on random operands.
TEST(AttentionReference, IsCloseToUnquantizedAttention) {
  const int n = 128, head_dim = 32;
  const AttentionProblem p(n, head_dim, 8, 1.0f);
  const AttentionOutput got = attend(p, Isa::kRef);
  double difference = 0, power = 0;
  for (int i = 0; i < n; ++i) {
    std::vector<double> e(n);
    double total = 0;
    for (int j = 0; j < n; ++j) {
      double dot = 0;
      for (int d = 0; d < head_dim; ++d) {
        dot += static_cast<double>(bf16_to_float(p.q[i * head_dim + d])) *
               bf16_to_float(p.k[j * head_dim + d]);
      }
      total += e[j] = std::exp(dot / std::sqrt(static_cast<double>(head_dim)));
    }
    for (int d = 0; d < head_dim; ++d) {
      double want = 0;
      for (int j = 0; j < n; ++j) want += e[j] / total * bf16_to_float(p.v[j * head_dim + d]);
      difference += std::pow(got.out[static_cast<size_t>(i) * got.ld_out + d] - want, 2);
      power += want * want;
    }
  }
  EXPECT_LT(std::sqrt(difference / power), 0.02);
}

class Attention : public OnEveryIsa {};

TEST_P(Attention, GivesTheSameBits) {
  for (int head_dim : {32, 64}) {
    for (int n : {1, 2, 15, 16, 17, 31, 32, 33, 47, 64, 95, 127, 200, 512, 1100}) {
      // Flat and saturated softmax, and what no model but a hostile package has.
      for (float sigma : {1.0f, 30.0f, 1e6f, 1e15f}) {
        const AttentionProblem p(n, head_dim, 6, sigma);
        const AttentionOutput got = attend(p, GetParam());
        for (float x : got.out) ASSERT_TRUE(std::isfinite(x)) << sigma;
        for (float x : got.column_sum) ASSERT_TRUE(std::isfinite(x) && x >= 0) << sigma;
        if (GetParam() == Isa::kRef) continue;
        const AttentionOutput want = attend(p, Isa::kRef);
        EXPECT_TRUE(same_bits(got.out, want.out)) << n;
        EXPECT_TRUE(same_bits(got.column_sum, want.column_sum)) << n;
      }
    }
  }
}

// Logits so large that nothing of the differences between them is left.
TEST_P(Attention, OfHugeEqualLogitsGivesNumbers) {
  for (int head_dim : {32, 64}) {
    for (float value : {19584.0f, 23040.0f, 1e15f}) {
      AttentionProblem p(3, head_dim, 6, 1.0f);
      p.q.assign(p.q.size(), float_to_bf16(value));
      p.k = p.q;
      const AttentionOutput got = attend(p, GetParam());
      for (float x : got.out) EXPECT_TRUE(std::isfinite(x));
      for (float x : got.column_sum) EXPECT_TRUE(std::isfinite(x) && x >= 0);
    }
  }
}

TEST_P(Attention, IsTheSameWithoutColumnSums) {
  const AttentionProblem p(77, 32, 7, 1.0f);
  EXPECT_TRUE(same_bits(attend(p, GetParam(), true).out, attend(p, GetParam(), false).out));
}

QLA_TEST_ON_EVERY_ISA(Attention);

}  // namespace
}  // namespace qla
