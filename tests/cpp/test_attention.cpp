// Every attention kernel: against a plain double-precision reading of docs/numerics.md, and equal
// to the bit across instruction sets, over every tail length.
#include <cmath>

#include "kernel_fixtures.h"

namespace qla {
namespace {

struct Output {
  std::vector<float> out, column_sum;
};

struct Problem {
  int n, head_dim;
  std::vector<uint16_t> q, k, v;
  Problem(int n_, int head_dim_, unsigned seed, float sigma) : n(n_), head_dim(head_dim_) {
    Random random(seed);
    const size_t size = static_cast<size_t>(n) * head_dim;
    q = to_bf16(random.floats(size, sigma));
    k = to_bf16(random.floats(size, sigma));
    v = to_bf16(random.floats(size, 1.0f));
  }
};

Output run(const Problem& p, Isa isa, bool sums = true) {
  const int ld_out = p.head_dim + 16;  // a head's slice of a wider row
  Output r;
  r.out.assign(static_cast<size_t>(p.n) * ld_out, -7.0f);
  r.column_sum.assign(static_cast<size_t>((p.n + 15) / 16 * 16), -7.0f);
  void* scratch = aligned_alloc(64, attention_scratch_bytes(p.n, p.head_dim));
  memset(scratch, 0xff, attention_scratch_bytes(p.n, p.head_dim));  // NaNs: nothing may leak
  AttentionArgs a{};
  a.q = p.q.data();
  a.k = p.k.data();
  a.v = p.v.data();
  a.n = p.n;
  a.head_dim = p.head_dim;
  a.scale = 1.0f / std::sqrt(static_cast<float>(p.head_dim));
  a.out = r.out.data();
  a.ld_out = ld_out;
  a.column_sum = sums ? r.column_sum.data() : nullptr;
  a.scratch = scratch;
  {
    const KernelRegion region(isa);
    select_kernels(isa).attention(a);
  }
  free(scratch);
  r.column_sum.resize(static_cast<size_t>(p.n));
  return r;
}

// Symmetric s8 of `count` values `stride` apart: what docs/numerics.md says of Q, K and V.
struct Symmetric {
  std::vector<int> q;
  double step;
  Symmetric(const uint16_t* x, int count, int stride) {
    float peak = 0;
    for (int i = 0; i < count; ++i) peak = std::max(peak, std::abs(bf16_to_float(x[i * stride])));
    step = peak / 127.0f;
    const double inverse = peak > 0 ? 127.0f / peak : 0.0f;
    for (int i = 0; i < count; ++i) {
      q.push_back(static_cast<int>(std::nearbyint(bf16_to_float(x[i * stride]) * inverse)));
    }
  }
};

TEST(Attention, MatchesDoublePrecision) {
  for (int head_dim : {32, 64}) {
    for (int n : {1, 7, 16, 33, 100}) {
      Problem p(n, head_dim, 5, 1.0f);
      // A query, a key and a value column without a scale.
      for (int d = 0; d < head_dim; ++d) p.q[n / 2 * head_dim + d] = p.k[n / 3 * head_dim + d] = 0;
      for (int i = 0; i < n; ++i) p.v[i * head_dim + 1] = 0;
      const Output got = run(p, Isa::kRef);
      std::vector<Symmetric> queries, keys, values;
      for (int i = 0; i < n; ++i) {
        queries.emplace_back(&p.q[i * head_dim], head_dim, 1);
        keys.emplace_back(&p.k[i * head_dim], head_dim, 1);
      }
      for (int d = 0; d < head_dim; ++d) values.emplace_back(&p.v[d], n, head_dim);
      std::vector<double> sums(n, 0.0);
      for (int i = 0; i < n; ++i) {
        std::vector<double> e(n);
        double peak = -1e300, total = 0;
        for (int j = 0; j < n; ++j) {
          for (int d = 0; d < head_dim; ++d) e[j] += queries[i].q[d] * keys[j].q[d];
          e[j] *= queries[i].step * keys[j].step / std::sqrt(static_cast<double>(head_dim));
          peak = std::max(peak, e[j]);
        }
        for (double& x : e) total += x = std::exp(x - peak);
        for (int j = 0; j < n; ++j) sums[j] += e[j] / total;
        for (int d = 0; d < head_dim; ++d) {
          double want = 0, magnitude = 0;
          for (int j = 0; j < n; ++j) {
            const double v = values[d].q[j] * values[d].step;
            want += e[j] / total * v;
            magnitude += std::abs(v);
          }
          // Every weight is rounded to a 255th of its row's largest: at most half of that off. The
          // exponential before it is off by 6.7e-4 at most, 0.171 of such a step, and so is the
          // sum that divides.
          const float out = got.out[static_cast<size_t>(i) * (head_dim + 16) + d];
          ASSERT_NEAR(out, want, magnitude / total * 0.85 / 255) << n << " " << head_dim;
        }
      }
      for (int j = 0; j < n; ++j) {
        // n probabilities, each a quotient of exponentials that are off by 6.7e-4 at most, and of
        // about 20 fp32 roundings on logits of up to a few tens.
        const double roundings = (n + 20 * 32) * std::ldexp(1.0, -24);
        ASSERT_NEAR(got.column_sum[j], sums[j], sums[j] * (2 * 6.7e-4 + roundings));
      }
    }
  }
}

// INT8 operands against none at all: what the quantization itself costs on random operands.
TEST(Attention, IsCloseToUnquantizedAttention) {
  const int n = 128, head_dim = 32;
  const Problem p(n, head_dim, 8, 1.0f);
  const Output got = run(p, Isa::kRef);
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
      difference += std::pow(got.out[static_cast<size_t>(i) * (head_dim + 16) + d] - want, 2);
      power += want * want;
    }
  }
  EXPECT_LT(std::sqrt(difference / power), 0.02);
}

TEST(Attention, EveryIsaGivesTheSameBits) {
  for (int head_dim : {32, 64}) {
    for (int n : {1, 2, 15, 16, 17, 31, 32, 33, 47, 64, 95, 127, 200, 512, 1100}) {
      // Flat and saturated softmax, and what no model but a hostile package has.
      for (float sigma : {1.0f, 30.0f, 1e6f, 1e15f}) {
        const Problem p(n, head_dim, 6, sigma);
        const Output want = run(p, Isa::kRef);
        for (float x : want.out) ASSERT_TRUE(std::isfinite(x)) << sigma;
        for (float x : want.column_sum) ASSERT_TRUE(std::isfinite(x) && x >= 0) << sigma;
        for (Isa isa : usable_isas()) {
          const Output got = run(p, isa);
          EXPECT_TRUE(same_bits(got.out, want.out)) << isa_name(isa) << " " << n;
          EXPECT_TRUE(same_bits(got.column_sum, want.column_sum)) << isa_name(isa) << " " << n;
        }
      }
    }
  }
}

// Logits so large that nothing of the differences between them is left.
TEST(Attention, HugeEqualLogitsGiveNumbers) {
  for (int head_dim : {32, 64}) {
    for (float value : {19584.0f, 23040.0f, 1e15f}) {
      Problem p(3, head_dim, 6, 1.0f);
      p.q.assign(p.q.size(), float_to_bf16(value));
      p.k = p.q;
      for (Isa isa : usable_isas()) {
        const Output got = run(p, isa);
        for (float x : got.out) EXPECT_TRUE(std::isfinite(x)) << isa_name(isa);
        for (float x : got.column_sum) EXPECT_TRUE(std::isfinite(x) && x >= 0) << isa_name(isa);
      }
    }
  }
}

TEST(Attention, AskingForColumnSumsChangesNothing) {
  const Problem p(77, 32, 7, 1.0f);
  for (Isa isa : usable_isas()) {
    EXPECT_TRUE(same_bits(run(p, isa, true).out, run(p, isa, false).out)) << isa_name(isa);
  }
}

}  // namespace
}  // namespace qla
