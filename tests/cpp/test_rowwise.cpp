// LayerNorm, quantization, dot products, top-k: against plain double precision, and equal to the
// bit across instruction sets.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernel_fixtures.h"

namespace qla {
namespace {

struct Quantized {
  std::vector<uint8_t> q;
  float scale, zero;
};

Quantized quantize(const std::vector<float>& x, Isa isa, QuantizeArgs how = {}) {
  Quantized r{std::vector<uint8_t>(x.size()), 0, 0};
  const KernelRegion region(isa);
  const float* row = x.data();
  select_kernels(isa).quantize(&row, 1, static_cast<int>(x.size()), nullptr, how, r.q.data(),
                               &r.scale, &r.zero);
  return r;
}

class Quantize : public OnEveryIsa {};
class LayerNorms : public OnEveryIsa {};
class Rows : public OnEveryIsa {};
class Dot : public OnEveryIsa {};
QLA_TEST_ON_EVERY_ISA(Quantize);
QLA_TEST_ON_EVERY_ISA(LayerNorms);
QLA_TEST_ON_EVERY_ISA(Rows);
QLA_TEST_ON_EVERY_ISA(Dot);

TEST(QuantizeReference, RoundTripsWithinHalfAStep) {
  for (int n : {64, 384, 1536}) {
    const std::vector<float> x = Random(8).floats(n, 3.0f);
    const Quantized r = quantize(x, Isa::kRef);
    for (int i = 0; i < n; ++i) {
      // Half a step for the value and half a step for the zero point's own rounding.
      ASSERT_NEAR((static_cast<int>(r.q[i]) - r.zero) * r.scale, x[i], r.scale * 1.001);
    }
  }
}

// docs/numerics.md, in double precision, where product and sum are exact but for ties' ties: 24
// bits times 24 bits, plus a small integer.
TEST(QuantizeReference, IsItsFormula) {
  std::vector<std::vector<float>> rows;
  for (unsigned seed = 0; seed < 20; ++seed) rows.push_back(Random(seed).floats(384, 3.0f));
  // The lowest value lands a little below -1/2: its zero point was rounded from a rounded product.
  rows.push_back(std::vector<float>(64, 0.0f));
  rows.back()[0] = -1.4497503f;
  rows.back()[1] = 2.5468583f;
  for (const std::vector<float>& x : rows) {
    const int n = static_cast<int>(x.size());
    const Quantized own = quantize(x, Isa::kRef);
    const float lo = *std::min_element(x.begin(), x.end());
    const float hi = *std::max_element(x.begin(), x.end());
    ASSERT_EQ(own.scale, (hi - lo) / 255.0f);
    ASSERT_EQ(own.zero, std::nearbyintf(-lo * (255.0f / (hi - lo))));
    const Quantized fixed = quantize(x, Isa::kRef, {true, 0.03f, 101});  // an odd zero point
    for (int i = 0; i < n; ++i) {
      const double inverse = 255.0f / (hi - lo);
      const double want = std::nearbyint(x[i] * inverse + own.zero);
      ASSERT_EQ(own.q[i], std::clamp(want, 0.0, 255.0)) << i;
      const float scaled = std::clamp(x[i] * (1.0f / 0.03f), -512.0f, 512.0f);
      ASSERT_EQ(fixed.q[i], std::clamp(std::nearbyint(scaled + 101.0), 0.0, 255.0)) << i;
    }
  }
}

// A GEMM's epilogue has found the largest value, lane by lane; the smallest is known.
TEST_P(Quantize, AfterGelu) {
  for (float sigma : {0.01f, 1.0f, 30.0f}) {
    std::vector<float> x = Random(12).floats(384, sigma), lanes(16, kLeastGelu);
    for (float& value : x) value = std::max(value, kLeastGelu);
    x[5] = kLeastGelu;
    for (size_t i = 0; i < x.size(); ++i) lanes[i % 16] = std::max(lanes[i % 16], x[i]);
    const Quantized want = quantize(x, Isa::kRef);
    Quantized r{std::vector<uint8_t>(x.size()), 0, 0};
    const KernelRegion region(GetParam());
    const float* row = x.data();
    select_kernels(GetParam())
        .quantize(&row, 1, 384, lanes.data(), {}, r.q.data(), &r.scale, &r.zero);
    EXPECT_TRUE(same_bits(r.q, want.q));
    EXPECT_EQ(r.scale, want.scale);
    EXPECT_EQ(r.zero, want.zero);
  }
}

TEST(QuantizeReference, OneSidedFlatAndTinyRows) {
  for (float value : {0.0f, 5.0f, -5.0f, 1e-38f}) {
    const Quantized r = quantize(std::vector<float>(64, value), Isa::kRef);
    EXPECT_NEAR((static_cast<int>(r.q[0]) - r.zero) * r.scale, value, r.scale + 1e-30);
  }
}

TEST_P(Quantize, StaticScalesClampWhatCalibrationNeverSaw) {
  std::vector<float> x(64, 0.5f);
  x[0] = 1e30f;
  x[1] = -1e30f;
  const Quantized r = quantize(x, GetParam(), {true, 0.01f, 100});
  EXPECT_EQ(r.q[0], 255);
  EXPECT_EQ(r.q[1], 0);
  EXPECT_EQ(r.q[2], 150);
}

TEST_P(Quantize, GivesTheSameBits) {
  for (int n : {64, 384, 1536}) {
    const std::vector<float> x = Random(9).floats(n, 2.0f);
    for (QuantizeArgs how : {QuantizeArgs{}, QuantizeArgs{true, 0.02f, 128}}) {
      const Quantized want = quantize(x, Isa::kRef, how), got = quantize(x, GetParam(), how);
      EXPECT_TRUE(same_bits(got.q, want.q));
      EXPECT_EQ(got.scale, want.scale);
      EXPECT_EQ(got.zero, want.zero);
    }
  }
}

struct NormProblem {
  int n;
  std::vector<float> x, residual, weight, bias;
  explicit NormProblem(int n_) : n(n_) {
    Random random(10);
    x = random.floats(n, 2.0f);
    residual = random.floats(n, 1.0f);
    weight = random.floats(n, 1.0f);
    bias = random.floats(n, 1.0f);
  }
};

std::vector<float> residual_norm(const NormProblem& p, Isa isa) {
  std::vector<float> out(p.n);
  const KernelRegion region(isa);
  const NormRow row{p.x.data(), p.residual.data(), out.data()};
  select_kernels(isa).residual_norm(&row, 1, {p.weight.data(), p.bias.data(), 1e-12f}, p.n);
  return out;
}

TEST(LayerNormReference, MatchesDoublePrecision) {
  for (int n : {64, 384, 1024}) {
    const NormProblem p(n);
    const std::vector<float> out = residual_norm(p, Isa::kRef);
    double mean = 0, variance = 0;
    for (int i = 0; i < n; ++i) mean += (p.x[i] + p.residual[i]) / static_cast<double>(n);
    for (int i = 0; i < n; ++i) {
      variance += std::pow(p.x[i] + p.residual[i] - mean, 2) / static_cast<double>(n);
    }
    for (int i = 0; i < n; ++i) {
      const double y = (p.x[i] + p.residual[i] - mean) / std::sqrt(variance + 1e-12);
      // Sums of n/64 terms a lane plus a tree of 6: (n/64 + 10) roundings at most.
      const double bound = (n / 64 + 10) * std::ldexp(1.0, -24) * (std::abs(y) + 1);
      ASSERT_NEAR(out[i], y * p.weight[i] + p.bias[i],
                  bound * std::abs(p.weight[i]) + std::ldexp(std::abs(p.bias[i]), -23));
    }
  }
}

TEST_P(LayerNorms, GiveTheSameBits) {
  for (int n : {64, 384, 1024}) {
    const NormProblem p(n);
    EXPECT_TRUE(same_bits(residual_norm(p, GetParam()), residual_norm(p, Isa::kRef))) << n;
  }
}

// Rows go several at a time; none may notice its neighbours, or where it lies.
TEST_P(Rows, GiveTheSameBitsTogetherAndAlone) {
  const int n = 64, count = 35;
  Random random(13);
  const std::vector<float> x = random.floats(count * n, 2.0f), y = random.floats(count * n, 1.0f),
                           weight = random.floats(n, 1.0f), bias = random.floats(n, 1.0f);
  struct Result {
    std::vector<float> normal, scale, zero;
    std::vector<uint8_t> q;
  };
  const Isa isa = GetParam();
  const auto run = [&](int together) {
    Result to{std::vector<float>(x.size()), std::vector<float>(count), std::vector<float>(count),
              std::vector<uint8_t>(x.size())};
    std::vector<NormRow> norm_rows;
    std::vector<const float*> rows;
    for (int r = 0; r < count; ++r) {
      const int scattered = r * 11 % count * n;
      norm_rows.push_back({&x[scattered], &y[scattered], &to.normal[r * n]});
      rows.push_back(&x[scattered]);
    }
    const KernelRegion region(isa);
    const KernelSet kernels = select_kernels(isa);
    for (int r = 0; r < count; r += together) {
      const int here = std::min(together, count - r);
      kernels.residual_norm(&norm_rows[r], here, {weight.data(), bias.data(), 1e-12f}, n);
      kernels.quantize(&rows[r], here, n, nullptr, {}, &to.q[r * n], &to.scale[r], &to.zero[r]);
    }
    return to;
  };
  const Result alone = run(1);
  for (int together : {2, 9, count}) {
    const Result got = run(together);
    EXPECT_TRUE(same_bits(got.normal, alone.normal)) << together;
    EXPECT_TRUE(same_bits(got.q, alone.q) && same_bits(got.scale, alone.scale) &&
                same_bits(got.zero, alone.zero))
        << together;
  }
}

TEST_P(LayerNorms, OfEmbeddingsAreThoseOfTheirSums) {
  const int n = 384;
  Random random(11);
  const std::vector<int8_t> word = random.ints<int8_t>(n, -127, 127);
  const std::vector<float> position = random.floats(n, 0.1f), type = random.floats(n, 0.1f),
                           weight = random.floats(n, 1.0f), bias = random.floats(n, 1.0f);
  std::vector<float> sum(n), zero(n, 0.0f), want(n);
  for (int i = 0; i < n; ++i) sum[i] = std::fmaf(word[i], 0.001f, position[i]) + type[i];
  const NormArgs norm{weight.data(), bias.data(), 1e-12f};
  {
    const KernelRegion region(Isa::kRef);
    const NormRow row{sum.data(), zero.data(), want.data()};
    select_kernels(Isa::kRef).residual_norm(&row, 1, norm, n);
  }
  std::vector<float> out(n);
  const KernelRegion region(GetParam());
  const EmbedRow row{word.data(), 0.001f, position.data(), type.data(), out.data()};
  select_kernels(GetParam()).embed_norm(&row, 1, norm, n);
  EXPECT_TRUE(same_bits(out, want));
}

TEST_P(Dot, IsExactEnoughAndTheSame) {
  Random random(12);
  const std::vector<float> a = random.floats(768, 1.0f), b = random.floats(768, 1.0f);
  const double exact = std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
  const float want = select_kernels(Isa::kRef).dot(a.data(), b.data(), 768);
  double magnitude = 0;
  for (int i = 0; i < 768; ++i) magnitude += std::abs(a[i] * b[i]);
  EXPECT_NEAR(want, exact, magnitude * (768 / 16 + 4) * std::ldexp(1.0, -24));
  EXPECT_EQ(select_kernels(GetParam()).dot(a.data(), b.data(), 768), want);
}

TEST(TopK, KeepsTheLargestTiesToTheLowerPosition) {
  Random random(13);
  for (int trial = 0; trial < 500; ++trial) {
    const int n = 2 + trial % 130;
    std::vector<float> scores(n);
    for (float& s : scores) s = static_cast<float>(random.ints<int>(1, 0, 12)[0]);  // many ties
    const int k = random.ints<int>(1, 2, n)[0];
    const bool keep_first = trial % 2;
    std::vector<int32_t> order(n), kept(k);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
      if (keep_first && (a == 0) != (b == 0)) return a == 0;
      return scores[a] > scores[b];
    });
    std::vector<int32_t> want(order.begin(), order.begin() + k);
    std::sort(want.begin(), want.end());
    std::vector<uint64_t> scratch(n);
    select_top_k(scores.data(), n, k, keep_first, scratch.data(), kept.data());
    ASSERT_EQ(kept, want);
  }
}

}  // namespace
}  // namespace qla
