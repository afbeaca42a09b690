// Every attention kernel: against softmax(Q K^T) V in double precision, and equal to the bit across
// instruction sets, over every tail length.
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
    q = to_bf16(random.floats(size + 16 * static_cast<size_t>(head_dim), sigma));
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

TEST(Attention, MatchesDoublePrecision) {
  for (int head_dim : {32, 64}) {
    for (int n : {1, 7, 16, 33, 100}) {
      const Problem p(n, head_dim, 5, 1.0f);
      const Output got = run(p, Isa::kRef);
      std::vector<double> sums(n, 0.0);
      for (int i = 0; i < n; ++i) {
        std::vector<double> s(n);
        double peak = -1e300, total = 0;
        for (int j = 0; j < n; ++j) {
          for (int d = 0; d < head_dim; ++d) {
            s[j] += static_cast<double>(bf16_to_float(p.q[i * head_dim + d])) *
                    bf16_to_float(p.k[j * head_dim + d]);
          }
          s[j] /= std::sqrt(static_cast<double>(head_dim));
          peak = std::max(peak, s[j]);
        }
        for (double& x : s) total += x = std::exp(x - peak);
        for (int j = 0; j < n; ++j) sums[j] += s[j] /= total;
        for (int d = 0; d < head_dim; ++d) {
          double want = 0, magnitude = 0;
          for (int j = 0; j < n; ++j) {
            const double v = bf16_to_float(p.v[j * head_dim + d]);
            want += s[j] * v;
            magnitude += s[j] * std::abs(v);
          }
          // bf16 keeps 8 bits: each weight is off by at most 2^-8 of itself; fp32 adds little.
          const float out = got.out[static_cast<size_t>(i) * (head_dim + 16) + d];
          ASSERT_NEAR(out, want, magnitude * (std::ldexp(1.0, -8) + 1e-5)) << n << " " << head_dim;
        }
      }
      for (int j = 0; j < n; ++j) {
        // Column sums are fp32 sums of n probabilities; scores differ by head_dim roundings.
        ASSERT_NEAR(got.column_sum[j], sums[j], sums[j] * (n + head_dim) * std::ldexp(1.0, -20));
      }
    }
  }
}

TEST(Attention, EveryIsaGivesTheSameBits) {
  for (int head_dim : {32, 64}) {
    for (int n : {1, 2, 15, 16, 17, 31, 32, 33, 47, 64, 95, 127, 200}) {
      for (float sigma : {1.0f, 30.0f}) {  // flat and saturated softmax
        const Problem p(n, head_dim, 6, sigma);
        const Output want = run(p, Isa::kRef);
        for (Isa isa : usable_isas()) {
          const Output got = run(p, isa);
          EXPECT_TRUE(same_bits(got.out, want.out)) << isa_name(isa) << " " << n;
          EXPECT_TRUE(same_bits(got.column_sum, want.column_sum)) << isa_name(isa) << " " << n;
        }
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
