// Attention as docs/numerics.md has it, in plain double precision, and what its tests run on it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>

#include "kernel_fixtures.h"

namespace qla {

struct AttentionProblem {
  int n, head_dim;
  std::vector<uint16_t> q, k, v;
  std::vector<int32_t> positions = {};  // none: null
  std::vector<float> bias = {};

  AttentionProblem(int n_, int head_dim_, unsigned seed, float sigma) : n(n_), head_dim(head_dim_) {
    Random random(seed);
    const size_t size = static_cast<size_t>(n) * head_dim;
    q = to_bf16(random.floats(size, sigma));
    k = to_bf16(random.floats(size, sigma));
    v = to_bf16(random.floats(size, 1.0f));
  }
};

struct AttentionOutput {
  std::vector<float> out, column_sum;
  int ld_out;
};

using AttentionKernel = void (*)(const AttentionArgs&);

inline AttentionOutput attend(const AttentionProblem& p, Isa isa, AttentionKernel kernel,
                              bool sums = true) {
  AttentionOutput r;
  r.ld_out = p.head_dim + 16;  // a head's slice of a wider row
  r.out.assign(static_cast<size_t>(p.n) * r.ld_out, -7.0f);
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
  a.ld_out = r.ld_out;
  a.column_sum = sums ? r.column_sum.data() : nullptr;
  a.scratch = scratch;
  a.positions = p.positions.empty() ? nullptr : p.positions.data();
  a.bias = p.bias.empty() ? nullptr : p.bias.data();
  {
    const KernelRegion region(isa);
    kernel(a);
  }
  free(scratch);
  r.column_sum.resize(static_cast<size_t>(p.n));
  return r;
}

inline AttentionOutput attend(const AttentionProblem& p, Isa isa, bool sums = true) {
  return attend(p, isa, select_kernels(isa).attention, sums);
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

// `bias(query, key)` is added to the logits.
inline void expect_double_precision(
    const AttentionProblem& p, const AttentionOutput& got,
    const std::function<double(int, int)>& bias = [](int, int) { return 0.0; }) {
  const int n = p.n, head_dim = p.head_dim;
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
      e[j] += bias(i, j);
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
      const float out = got.out[static_cast<size_t>(i) * got.ld_out + d];
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

}  // namespace qla
