// The polynomials that stand for GELU and for the softmax's exponential, on every instruction set,
// over a dense grid, against double precision. Prints the figures that docs/numerics.md quotes.
#include <cmath>
#include <cstdio>

#include "kernel_fixtures.h"
#include "polynomials.h"

namespace qla {
namespace {

struct Polynomials {
  Isa isa;
  Polynomial *gelu, *exponential;
};

constexpr Polynomials kEach[] = {
    {Isa::kRef, gelu_ref, exponential_ref},
    {Isa::kAvx2, gelu_avx2, exponential_avx2},
    {Isa::kAvxVnni, gelu_avxvnni, exponential_avxvnni},
    {Isa::kAvx512Vnni, gelu_avx512vnni, exponential_avx512vnni},
    {Isa::kAmx, gelu_amx, exponential_amx},
};

constexpr int kPoints = 400'000;  // a multiple of 16

std::vector<float> grid(double low, double high) {
  std::vector<float> x(kPoints);
  for (int i = 0; i < kPoints; ++i) {
    x[i] = static_cast<float>(low + (high - low) * i / (kPoints - 1));
  }
  return x;
}

// What attention.h calls t: the bits of 2^e, but for a curved mantissa.
float exponent_bits(double e) { return static_cast<float>((127 + e) * 0x1p23); }

std::vector<float> values(Polynomial* function, const std::vector<float>& x) {
  std::vector<float> y(x.size());
  const KernelRegion region(Isa::kRef);  // for its float mode; there are no tiles here
  function(x.data(), static_cast<int>(x.size()), y.data());
  return y;
}

class OnIsa : public testing::TestWithParam<Polynomials> {
 protected:
  void SetUp() override {
    const IsaStatus status = isa_status(GetParam().isa);
    if (!status.usable) GTEST_SKIP() << isa_name(GetParam().isa) << ": " << status.reason;
  }
};

TEST_P(OnIsa, Gelu) {
  for (double limit : {7.0, 1e3, 1e7, 3e15}) {
    const std::vector<float> x = grid(-limit, limit);
    const std::vector<float> y = values(GetParam().gelu, x);
    double largest = 0, at = 0;
    for (int i = 0; i < kPoints; ++i) {
      const double exact = 0.5 * x[i] * std::erfc(-x[i] / std::sqrt(2.0));
      const double error = std::abs(y[i] - exact);
      // Beyond the clamp Phi is 1 or 0 up to its last roundings, which x multiplies.
      ASSERT_LE(error, std::max(1.08e-3, 2e-7 * std::abs(x[i]))) << x[i];
      ASSERT_GE(y[i], kLeastGelu) << x[i];
      if (error > largest) largest = error, at = x[i];
    }
    std::printf("gelu: largest error %.2e at x = %.3f over [-%g, %g]\n", largest, at, limit, limit);
    EXPECT_TRUE(same_bits(y, values(gelu_ref, x)));
  }
}

TEST_P(OnIsa, Exponential) {
  double largest = 0;
  // In ten parts, so that neighbours lie closer than the cubic bends.
  for (int part = 0; part < 10; ++part) {
    std::vector<float> t = grid(-125 + 12.5125 * part, -125 + 12.5125 * (part + 1));
    for (float& e : t) e = exponent_bits(e);
    const std::vector<float> y = values(GetParam().exponential, t);
    for (int i = 0; i < kPoints; ++i) {
      const double exact = 255 * std::exp2(static_cast<double>(t[i]) * 0x1p-23 - 127);
      largest = std::max(largest, std::abs(y[i] / exact - 1));
    }
    EXPECT_TRUE(same_bits(y, values(exponential_ref, t)));
  }
  std::printf("exponential: largest relative error %.2e over [-125, 1/8]\n", largest);
  EXPECT_LE(largest, 6.7e-4);
}

TEST_P(OnIsa, ExponentialIsZeroBelowTheNormalNumbers) {
  for (double e : {-127.0, -128.0, -1000.0, -1e30}) {
    const std::vector<float> t(16, exponent_bits(e));
    for (float y : values(GetParam().exponential, t)) EXPECT_EQ(y, 0) << e;
  }
}

INSTANTIATE_TEST_SUITE_P(Polynomials, OnIsa, testing::ValuesIn(kEach),
                         [](const auto& info) { return isa_name(info.param.isa); });

}  // namespace
}  // namespace qla
