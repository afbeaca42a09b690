// The tile products TDPB*D and TDPBF16PS.
#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "amx_fixtures.h"

namespace {

PRODUCT(Bssd, _tile_dpbssd, 0, 1, 2)
PRODUCT(Bsud, _tile_dpbsud, 0, 1, 2)
PRODUCT(Buud, _tile_dpbuud, 0, 1, 2)
PRODUCT(Bf16, _tile_dpbf16ps, 0, 1, 2)
// Other tiles, to see other encodings.
PRODUCT(BusdOther, _tile_dpbusd, 7, 3, 6)
PRODUCT(Bf16Other, _tile_dpbf16ps, 5, 7, 4)
using Product = void (*)(const Config*, Tile*, const Tile*, const Tile*);

// ---- Definitions -------------------------------------------------------------------------------

// Denormals count as zeros of their sign.
float flushed(float x) {
  return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x;
}

// fma(a, b, c) rounded once to nearest even, denormals flushed before and (by the rounded value)
// after: from double arithmetic alone, so that no FMA unit and no MXCSR has a say. `a` and `b` need
// no more than 24 bits together with at most 2^+-250, which bf16 products and 1 * float keep.
float fma_flushed(float a, float b, float c) {
  const double product = static_cast<double>(flushed(a)) * flushed(b);  // exact
  const double addend = flushed(c);
  double sum = product + addend;
  if (std::isfinite(sum)) {
    // Round the sum to odd instead: a second rounding to float is then as good as a single one.
    const double back = sum - product;
    const double lost = (product - (sum - back)) + (addend - back);
    uint64_t bits;
    memcpy(&bits, &sum, sizeof bits);
    if (lost != 0 && (bits & 1) == 0) bits += (lost > 0) == (sum > 0) ? 1 : -1;
    memcpy(&sum, &bits, sizeof sum);
  }
  // The smallest normal is 2^-126, and from half a unit (2^-151) below it values round up to it.
  if (std::fabs(sum) < 0x1p-126 - 0x1p-151) return static_cast<float>(std::copysign(0.0, sum));
  return static_cast<float>(sum);
}

float add_flushed(float a, float b) { return fma_flushed(1.0f, a, b); }

float from_bf16(uint16_t bits) {
  const uint32_t wide = uint32_t{bits} << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}

void define_bf16(Tile* c, const Tile& a, const Tile& b, int m, int n, int k) {
  for (int r = 0; r < m; ++r) {
    for (int col = 0; col < n; ++col) {
      float even = 0, odd = 0;
      for (int p = 0; p < k; ++p) {
        const uint16_t *x = a.row<uint16_t>(r) + 2 * p, *y = b.row<uint16_t>(p) + 2 * col;
        even = fma_flushed(from_bf16(x[0]), from_bf16(y[0]), even);
        odd = fma_flushed(from_bf16(x[1]), from_bf16(y[1]), odd);
      }
      float* sum = c->row<float>(r) + col;
      *sum = add_flushed(*sum, add_flushed(even, odd));
    }
  }
}

// ---- Operands ----------------------------------------------------------------------------------

uint32_t float_bits(int sign, int exponent, uint32_t fraction) {
  return static_cast<uint32_t>(sign) << 31 | static_cast<uint32_t>(exponent) << 23 | fraction;
}

// Random sign and fraction, biased exponent in [low, high]: 0 makes denormals and zeros, 255 makes
// infinities and NaN. One value in eight has no fraction, so that exact ties and zeros occur.
uint32_t random_float(int low, int high) {
  const uint32_t fraction = random_int(0, 7) == 0 ? 0 : rng()() & 0x7fffff;
  return float_bits(random_int(0, 1), random_int(low, high), fraction);
}

struct Exponents {
  const char* name;
  int low_ab, high_ab, low_c, high_c;
};
constexpr Exponents kExponents[] = {
    {"about one", 120, 134, 120, 134},
    {"equal exponents: cancellation", 127, 127, 127, 130},
    {"far apart", 1, 254, 1, 254},
    {"everything, infinities and NaN", 0, 255, 0, 255},
    {"denormals among normals", 0, 2, 0, 2},
    {"denormal times huge", 0, 254, 0, 3},
    {"products at the smallest normal", 60, 67, 0, 4},
    {"products below it", 50, 64, 0, 1},
    {"products at the largest", 188, 192, 250, 254},
};

Tile random_bf16(const Exponents& e) {
  Tile tile;
  for (auto& row : tile.bytes) {
    uint16_t* values = reinterpret_cast<uint16_t*>(row);
    for (int i = 0; i < 32; ++i) values[i] = random_float(e.low_ab, e.high_ab) >> 16;
  }
  return tile;
}

Tile random_fp32(const Exponents& e) {
  Tile tile;
  for (auto& row : tile.bytes) {
    uint32_t* values = reinterpret_cast<uint32_t*>(row);
    for (int i = 0; i < 16; ++i) values[i] = random_float(e.low_c, e.high_c);
  }
  return tile;
}

// Equal bits, but any NaN equals any NaN: the payload is no part of the rule.
testing::AssertionResult same_fp32(const Tile& got, const Tile& want) {
  for (int r = 0; r < 16; ++r) {
    for (int n = 0; n < 16; ++n) {
      const float x = got.row<float>(r)[n], y = want.row<float>(r)[n];
      if (memcmp(&x, &y, 4) != 0 && !(std::isnan(x) && std::isnan(y))) {
        return testing::AssertionFailure()
               << std::hexfloat << "row " << r << " column " << n << ": " << x << ", not " << y;
      }
    }
  }
  return testing::AssertionSuccess();
}

// ---- Products ----------------------------------------------------------------------------------

template <class A, class B>
void check_int8(Product product, int tc = 0, int ta = 1, int tb = 2) {
  for (int m = 1; m <= 16; ++m) {
    for (int n = 1; n <= 16; ++n) {
      for (int k = 1; k <= 16; ++k) {
        const Config config = product_config(m, n, k, tc, ta, tb);
        const bool extreme = (m + n + k) % 2;
        const Tile a = extreme ? extreme_tile() : random_tile();
        const Tile b = extreme ? extreme_tile() : random_tile();
        Tile got = random_tile();  // accumulators of all sizes: sums wrap
        Tile want = got;
        product(&config, &got, &a, &b);
        define_int8<A, B>(&want, a, b, m, n, k);
        ASSERT_TRUE(same(got, want)) << m << " x " << n << " x " << k;
      }
    }
  }
}

TEST_F(Amx, Tdpbssd) { check_int8<int8_t, int8_t>(Bssd); }
TEST_F(Amx, Tdpbsud) { check_int8<int8_t, uint8_t>(Bsud); }
TEST_F(Amx, Tdpbusd) { check_int8<uint8_t, int8_t>(Busd); }
TEST_F(Amx, Tdpbuud) { check_int8<uint8_t, uint8_t>(Buud); }
TEST_F(Amx, TdpbusdOtherTiles) { check_int8<uint8_t, int8_t>(BusdOther, 7, 3, 6); }

TEST_F(Amx, Tdpbf16psAllShapes) {
  for (int m = 1; m <= 16; ++m) {
    for (int n = 1; n <= 16; ++n) {
      for (int k = 1; k <= 16; ++k) {
        const Config config = product_config(m, n, k, 5, 7, 4);
        const Exponents& e = kExponents[(m + n + k) % std::size(kExponents)];
        const Tile a = random_bf16(e), b = random_bf16(e);
        Tile got = random_fp32(e);
        Tile want = got;
        Bf16Other(&config, &got, &a, &b);
        define_bf16(&want, a, b, m, n, k);
        ASSERT_TRUE(same_fp32(got, want)) << m << " x " << n << " x " << k << ", " << e.name;
      }
    }
  }
}

TEST_F(Amx, Tdpbf16psAllMagnitudes) {
  const Config config = product_config(16, 16, 16);
  for (const Exponents& e : kExponents) {
    for (int repeat = 0; repeat < 100; ++repeat) {
      const Tile a = random_bf16(e), b = random_bf16(e);
      Tile got = random_fp32(e);
      Tile want = got;
      Bf16(&config, &got, &a, &b);
      define_bf16(&want, a, b, 16, 16, 16);
      ASSERT_TRUE(same_fp32(got, want)) << e.name << ", repeat " << repeat;
    }
  }
}

// Products in cancelling pairs, in the same chain and across chains, leave only rounding errors:
// any other order of summation shows.
TEST_F(Amx, Tdpbf16psCancellation) {
  const Config config = product_config(16, 16, 16);
  const Exponents e = {"", 110, 144, 1, 120};
  for (int repeat = 0; repeat < 100; ++repeat) {
    Tile a = random_bf16(e), b = random_bf16(e);
    const int distance = 1 << random_int(0, 4);  // 1: across chains; else along one
    for (int m = 0; m < 16; ++m)
      for (int p = 0; p < 32; ++p)
        if (p & distance) a.row<uint16_t>(m)[p] = a.row<uint16_t>(m)[p ^ distance] ^ 0x8000;
    for (int p = 0; p < 32; ++p)
      for (int n = 0; n < 16; ++n)
        if (p & distance) {
          const int q = p ^ distance;
          b.row<uint16_t>(p / 2)[2 * n + p % 2] = b.row<uint16_t>(q / 2)[2 * n + q % 2];
        }
    Tile got = random_fp32(e);
    Tile want = got;
    Bf16(&config, &got, &a, &b);
    define_bf16(&want, a, b, 16, 16, 16);
    ASSERT_TRUE(same_fp32(got, want)) << "distance " << distance << ", repeat " << repeat;
  }
}

TEST_F(Amx, Tdpbf16psSignedZeros) {
  const Config config = product_config(16, 16, 16);
  constexpr uint16_t kHalves[] = {0x0000, 0x8000, 0x0001, 0x8001};  // zeros, denormals
  for (int repeat = 0; repeat < 16; ++repeat) {
    Tile a, b, got;
    for (int r = 0; r < 16; ++r)
      for (int i = 0; i < 32; ++i) {
        a.row<uint16_t>(r)[i] = kHalves[random_int(0, 3)];
        b.row<uint16_t>(r)[i] = kHalves[random_int(0, 3)];
        got.row<uint16_t>(r)[i] = i % 2 ? kHalves[random_int(0, 3)] : 0;
      }
    Tile want = got;
    Bf16(&config, &got, &a, &b);
    define_bf16(&want, a, b, 16, 16, 16);
    ASSERT_TRUE(same_fp32(got, want));
  }
}

// The instruction rounds by its own rule and raises nothing, whatever MXCSR says.
TEST_F(Amx, Tdpbf16psIgnoresMxcsr) {
  const Config config = product_config(16, 16, 16);
  const unsigned saved = _mm_getcsr();
  for (unsigned mxcsr : {0x1f80u, 0x9fc0u, 0x3f80u, 0x5f80u, 0x7f80u, 0xffc0u}) {
    for (const Exponents& e : kExponents) {
      const Tile a = random_bf16(e), b = random_bf16(e);
      Tile got = random_fp32(e);
      Tile want = got;
      _mm_setcsr(mxcsr);
      Bf16(&config, &got, &a, &b);
      const unsigned after = _mm_getcsr();
      _mm_setcsr(saved);
      define_bf16(&want, a, b, 16, 16, 16);
      ASSERT_TRUE(same_fp32(got, want)) << e.name;
      ASSERT_EQ(after, mxcsr) << e.name;
    }
  }
}

}  // namespace
