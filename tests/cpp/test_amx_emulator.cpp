// Every AMX instruction the kernels use, against its definition in plain C++.
//
// On a CPU with AMX this compares the hardware with the definitions (above all the rounding rule of
// TDPBF16PS that docs/numerics.md builds on). With libamx_emulator.so preloaded it holds the
// emulator to the same. With neither it skips, saying why.
#include <gtest/gtest.h>
#include <immintrin.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cpu_features.h"

extern "C" __attribute__((weak, visibility("default"))) int qla_amx_emulator_active(void);

namespace {

bool emulated() { return qla_amx_emulator_active && qla_amx_emulator_active() == 1; }

class Amx : public testing::Test {
 protected:
  void SetUp() override {
    if (emulated()) return;  // even on a CPU without AVX-512, which the amx kernels need as well
    const qla::IsaStatus amx = qla::isa_status(qla::Isa::kAmx);
    if (!amx.usable) {
      GTEST_SKIP() << "no AMX to compare with: " << amx.reason
                   << "; preload libamx_emulator.so to test the emulator instead";
    }
  }
};

// Same seed, same test: a failure here must come again.
std::mt19937& rng() {
  static thread_local std::mt19937 generator(20251120);
  return generator;
}

int random_int(int low, int high) { return std::uniform_int_distribution<int>(low, high)(rng()); }

// ---- Tiles -------------------------------------------------------------------------------------

struct alignas(64) Config {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t colsb[16] = {};
  uint8_t rows[16] = {};

  void shape(int tile, int tile_rows, int tile_colsb) {
    rows[tile] = tile_rows;
    colsb[tile] = tile_colsb;
  }
};

struct alignas(64) Tile {
  uint8_t bytes[16][64] = {};

  template <class T>
  T* row(int r) {
    return reinterpret_cast<T*>(bytes[r]);
  }
  template <class T>
  const T* row(int r) const {
    return reinterpret_cast<const T*>(bytes[r]);
  }
};

// The intrinsics of GCC 12 do not tell the compiler that they read memory, so wherever one meets
// fresh stores a call that nobody looks into stands between.
#define OPAQUE __attribute__((noipa))

// One tile product. The "Other" ones name other tiles, to see other encodings.
#define PRODUCT(Name, intrinsic, tc, ta, tb)                                      \
  OPAQUE void Name(const Config* config, Tile* c, const Tile* a, const Tile* b) { \
    _tile_loadconfig(config);                                                     \
    _tile_loadd(tc, c, 64);                                                       \
    _tile_loadd(ta, a, 64);                                                       \
    _tile_stream_loadd(tb, b, 64);                                                \
    intrinsic(tc, ta, tb);                                                        \
    _tile_stored(tc, c, 64);                                                      \
  }
PRODUCT(Bssd, _tile_dpbssd, 0, 1, 2)
PRODUCT(Bsud, _tile_dpbsud, 0, 1, 2)
PRODUCT(Busd, _tile_dpbusd, 0, 1, 2)
PRODUCT(Buud, _tile_dpbuud, 0, 1, 2)
PRODUCT(Bf16, _tile_dpbf16ps, 0, 1, 2)
PRODUCT(BusdOther, _tile_dpbusd, 7, 3, 6)
PRODUCT(Bf16Other, _tile_dpbf16ps, 5, 7, 4)
using Product = void (*)(const Config*, Tile*, const Tile*, const Tile*);

// C is m x n, A is m x (4 k bytes), B is k x n; in dwords.
Config product_config(int m, int n, int k, int tc = 0, int ta = 1, int tb = 2) {
  Config config;
  config.shape(tc, m, 4 * n);
  config.shape(ta, m, 4 * k);
  config.shape(tb, k, 4 * n);
  return config;
}

// ---- Definitions -------------------------------------------------------------------------------

template <class A, class B>
void define_int8(Tile* c, const Tile& a, const Tile& b, int m, int n, int k) {
  for (int r = 0; r < m; ++r) {
    for (int col = 0; col < n; ++col) {
      uint32_t sum = c->row<uint32_t>(r)[col];  // wraps
      for (int p = 0; p < 4 * k; ++p)
        sum += static_cast<uint32_t>(a.row<A>(r)[p] * b.row<B>(p / 4)[4 * col + p % 4]);
      c->row<uint32_t>(r)[col] = sum;
    }
  }
}

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

Tile random_tile() {
  Tile tile;
  for (auto& row : tile.bytes)
    for (uint8_t& byte : row) byte = static_cast<uint8_t>(rng()());
  return tile;
}

// Only the bytes that saturating or sign-confusing arithmetic gets wrong.
Tile extreme_tile() {
  constexpr uint8_t kBytes[] = {0x00, 0x01, 0x7f, 0x80, 0x81, 0xff};
  Tile tile;
  for (auto& row : tile.bytes)
    for (uint8_t& byte : row) byte = kBytes[random_int(0, 5)];
  return tile;
}

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

bool same(const Tile& a, const Tile& b) { return memcmp(&a, &b, sizeof a) == 0; }

// ---- Configuration -----------------------------------------------------------------------------

// Not the intrinsics: GCC 12's claim to touch 8 of the 64 bytes only.
void load_config(const Config& config) { asm volatile("ldtilecfg %0" ::"m"(config)); }
Config store_config() {
  Config config;
  memset(static_cast<void*>(&config), 0xee, sizeof config);
  asm volatile("sttilecfg %0" : "+m"(config));
  return config;
}

TEST_F(Amx, ConfigIsStoredAsLoadedAndReleased) {
  const Config zeros = [] {
    Config c;
    c.palette = 0;
    return c;
  }();
  for (int repeat = 0; repeat < 50; ++repeat) {
    Config config;
    for (int t = 0; t < 8; ++t)
      if (random_int(0, 3)) config.shape(t, random_int(1, 16), 4 * random_int(1, 16));
    load_config(config);
    Config stored = store_config();
    EXPECT_EQ(memcmp(&stored, &config, sizeof config), 0);
    if (repeat % 2)
      _tile_release();
    else
      load_config(zeros);
    stored = store_config();
    EXPECT_EQ(memcmp(&stored, &zeros, sizeof zeros), 0);
  }
}

OPAQUE void load_tile3(const Tile* tile) { _tile_loadd(3, tile, 64); }
OPAQUE void store_tile3(Tile* tile) { _tile_stored(3, tile, 64); }

TEST_F(Amx, LoadingAConfigAndTileZeroClearTiles) {
  Config config;
  config.shape(3, 16, 64);
  const Tile pattern = random_tile(), zero;
  Tile out = pattern;
  load_config(config);
  load_tile3(&pattern);
  load_config(config);
  store_tile3(&out);
  EXPECT_TRUE(same(out, zero));

  load_tile3(&pattern);
  store_tile3(&out);
  EXPECT_TRUE(same(out, pattern));
  _tile_zero(3);
  store_tile3(&out);
  EXPECT_TRUE(same(out, zero));
  _tile_release();
}

// ---- Loads and stores --------------------------------------------------------------------------

OPAQUE void copy_tile(const Config* config, const void* from, long from_stride, void* to,
                      long to_stride, bool stream) {
  _tile_loadconfig(config);
  if (stream)
    _tile_stream_loadd(5, from, from_stride);
  else
    _tile_loadd(5, from, from_stride);
  _tile_stored(5, to, to_stride);
  _tile_release();
}

TEST_F(Amx, LoadAndStoreTouchExactlyTheShape) {
  constexpr int kRoom = 16 * 1024 + 64;
  std::vector<uint8_t> from(2 * kRoom), to(2 * kRoom), want;
  for (uint8_t& byte : from) byte = static_cast<uint8_t>(rng()());
  constexpr long kStrides[] = {64, 0, 4, 68, 384, 1024, -64, -1000};

  for (int rows = 1; rows <= 16; ++rows) {
    for (int colsb = 4; colsb <= 64; colsb += 4) {
      Config config;
      config.shape(5, rows, colsb);
      const long in = kStrides[random_int(0, 7)], out = kStrides[random_int(0, 7)];
      const int at = kRoom + random_int(0, 63);
      std::fill(to.begin(), to.end(), 0xa5);
      want = to;
      for (int r = 0; r < rows; ++r) memcpy(&want[at + r * out], &from[at + r * in], colsb);
      copy_tile(&config, &from[at], in, &to[at], out, rows % 2);
      ASSERT_EQ(to, want) << rows << " x " << colsb << ", strides " << in << " " << out;
    }
  }
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

// ---- Addressing --------------------------------------------------------------------------------

// The assembler writes one stub for every base, index, scale and kind of displacement:
//   void stub(const Operands* rdi): base and index registers from *rdi, then
//   tileloadd displacement(base, index, scale), tmm2; tilestored tmm2 to the same form at `out`.
// rsp may be the base, so the stubs keep the caller's rsp in memory, and `base` must have room for
// a stack (a signal frame) below it.
struct Operands {
  const uint8_t* base;
  uint8_t* out;
  long index;
};

asm(R"(
        .pushsection .bss
        .balign 8
        .lcomm saved_rsp, 8
        .popsection
        .pushsection .text
        .macro enter
        push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15
        mov %rsp, saved_rsp(%rip)
        .endm
        .macro leave_stub
        mov saved_rsp(%rip), %rsp
        pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx
        ret
        .endm

        # Operands are in rdi; rdi itself may be base or index, so both come from the stack.
        .macro stub base, index, scale, displacement
        .balign 128
        enter
        push 16(%rdi); push 8(%rdi); push (%rdi)
        mov 16(%rsp), %\index
        mov (%rsp), %\base
        tileloadd \displacement(%\base,%\index,\scale), %tmm2
        mov saved_rsp(%rip), %rsp
        mov -16(%rsp), %\base
        tilestored %tmm2, \displacement(%\base,%\index,\scale)
        leave_stub
        .endm

        .balign 128
addressing_stubs:
        .irp base, rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
        .irp index, rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
        .ifnc \base, \index
        stub \base, \index, 1, 0
        stub \base, \index, 2, -64
        stub \base, \index, 4, 0x1000
        stub \base, \index, 8, -0x80
        .endif
        .endr
        .endr
        .balign 128
addressing_stubs_end:
        .popsection
)");
extern "C" const uint8_t addressing_stubs[], addressing_stubs_end[];

// The forms without an index: every row comes from the same address.
OPAQUE void load_no_index(const uint8_t* p, Tile* out, int form) {
  switch (form) {
    case 0:
      asm volatile("tileloadd (%0), %%tmm2" ::"r"(p) : "memory");
      break;
    case 1:
      asm volatile("xchg %%r13, %0\n tileloadd (%%r13), %%tmm2\n xchg %%r13, %0"
                   : "+a"(p)::"memory");
      break;
    case 2:
      asm volatile("tileloadd -0x40(%0), %%tmm2" ::"r"(p + 0x40) : "memory");
      break;
    case 3:
      asm volatile("tileloadd 0x12345(%0), %%tmm2" ::"r"(p - 0x12345) : "memory");
      break;
  }
  _tile_stored(2, out, 64);
}

TEST_F(Amx, EveryBaseIndexScaleAndDisplacement) {
  constexpr int kStackRoom = 64 << 10, kPitch = 72;
  constexpr int kScale[] = {1, 2, 4, 8}, kDisplacement[] = {0, -64, 0x1000, -0x80};
  static uint8_t in[kStackRoom + (16 << 10)], out[kStackRoom + (16 << 10)];
  Config config;
  config.shape(2, 16, 64);
  load_config(config);

  const int stubs = static_cast<int>((addressing_stubs_end - addressing_stubs) / 128);
  ASSERT_EQ(stubs, 4 * (16 * 15 - 15));
  for (int i = 0; i < stubs; ++i) {
    const int stride = kPitch, displacement = kDisplacement[i % 4];
    // Below the operand only a stack may write: the pattern is filled in anew for each stub.
    for (size_t b = 0; b < sizeof in; ++b) in[b] = static_cast<uint8_t>(rng()());
    memset(out, 0, sizeof out);
    const Operands operands = {in + kStackRoom, out + kStackRoom, stride / kScale[i % 4]};
    reinterpret_cast<void (*)(const Operands*)>(
        reinterpret_cast<uintptr_t>(addressing_stubs + 128 * i))(&operands);
    for (int r = 0; r < 16; ++r) {
      const int at = kStackRoom + displacement + r * stride;
      ASSERT_EQ(memcmp(out + at, in + at, 64), 0) << "stub " << i << ", row " << r;
    }
  }
  _tile_release();
}

TEST_F(Amx, NoIndexRepeatsOneRow) {
  Config config;
  config.shape(2, 16, 64);
  load_config(config);
  const Tile in = random_tile();
  for (int form = 0; form < 4; ++form) {
    Tile got, want;
    for (auto& row : want.bytes) memcpy(row, in.bytes[7], 64);
    load_no_index(in.bytes[7], &got, form);
    EXPECT_TRUE(same(got, want)) << "form " << form;
  }
  _tile_release();
}

TEST_F(Amx, ConfigAtEveryKindOfAddress) {
  static Config at_rip = product_config(3, 5, 7);
  const Config config = product_config(9, 4, 2);
  const Config* p = &config;
  Config stored;
  asm volatile("ldtilecfg %0" ::"m"(at_rip));
  asm volatile("sttilecfg %0" : "=m"(stored));
  EXPECT_EQ(memcmp(&stored, &at_rip, 64), 0);
  asm volatile("ldtilecfg (%0)" ::"r"(p) : "memory");
  asm volatile("sttilecfg %0" : "=m"(at_rip));
  EXPECT_EQ(memcmp(&config, &at_rip, 64), 0);

  const auto check = [&] {
    asm volatile("sttilecfg %0" : "=m"(stored));
    EXPECT_EQ(memcmp(&stored, &config, 64), 0);
    _tile_release();
  };
  asm volatile("ldtilecfg 0x10(%0)" ::"r"(reinterpret_cast<uintptr_t>(p) - 0x10) : "memory");
  check();
  asm volatile("ldtilecfg -0x1000(%0,%1,8)" ::"r"(reinterpret_cast<uintptr_t>(p) + 0xf00), "r"(32L)
               : "memory");
  check();
  asm volatile("xchg %%r12, %0\n ldtilecfg (%%r12)\n xchg %%r12, %0" : "+a"(p)::"memory");
  check();
  asm volatile("xchg %%r13, %0\n ldtilecfg (%%r13)\n xchg %%r13, %0" : "+a"(p)::"memory");
  check();
  asm volatile("ldtilecfg (,%0,2)" ::"r"(reinterpret_cast<uintptr_t>(p) / 2) : "memory");
  check();
}

// ---- Company -----------------------------------------------------------------------------------

TEST_F(Amx, EachThreadHasItsOwnTiles) {
  const Config mine = product_config(16, 16, 16, 3, 1, 2);
  const Tile pattern = random_tile();
  load_config(mine);
  load_tile3(&pattern);
  std::thread([] {
    EXPECT_EQ(store_config().palette, 0);  // a thread begins without tiles
    const Config other = product_config(5, 7, 9, 3, 1, 2);
    const Tile other_pattern = random_tile();
    load_config(other);
    load_tile3(&other_pattern);
    _tile_release();
  }).join();
  const Config stored = store_config();
  Tile got;
  store_tile3(&got);
  EXPECT_EQ(memcmp(&stored, &mine, sizeof mine), 0);
  EXPECT_TRUE(same(got, pattern));
  _tile_release();
}

// Vector registers and flags of the interrupted code come through.
TEST_F(Amx, OtherRegistersSurvive) {
  Config config;
  config.shape(0, 16, 64);
  load_config(config);
  const float in[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  float out[8] = {};
  uint64_t flags_kept = 0;
  asm volatile(
      "vmovups %2, %%ymm7\n xor %%eax, %%eax\n stc\n tilezero %%tmm0\n tilezero %%tmm0\n"
      "sbb %0, %0\n vmovups %%ymm7, %1\n vzeroupper"
      : "=&r"(flags_kept), "=m"(out)
      : "m"(in)
      : "rax", "xmm7", "cc");
  EXPECT_EQ(flags_kept, ~uint64_t{0});
  EXPECT_EQ(memcmp(in, out, sizeof in), 0);
  _tile_release();
}

volatile sig_atomic_t ud2_seen;
void skip_ud2(int, siginfo_t*, void* context) {
  ud2_seen = ud2_seen + 1;
  static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP] += 2;
}

// A program with a SIGILL handler of its own (pytest installs one) keeps it, and keeps AMX.
TEST_F(Amx, AnotherSigillHandlerStillWorks) {
  struct sigaction mine = {}, before, reported;
  mine.sa_sigaction = skip_ud2;
  mine.sa_flags = SA_SIGINFO;
  ASSERT_EQ(sigaction(SIGILL, &mine, &before), 0);
  const Config config = product_config(16, 16, 16);
  const Tile a = extreme_tile(), b = extreme_tile();
  Tile got, want;
  ud2_seen = 0;
  asm volatile("ud2" ::: "memory");
  Busd(&config, &got, &a, &b);
  asm volatile("ud2" ::: "memory");
  EXPECT_EQ(ud2_seen, 2);
  define_int8<uint8_t, int8_t>(&want, a, b, 16, 16, 16);
  EXPECT_TRUE(same(got, want));
  ASSERT_EQ(sigaction(SIGILL, &before, &reported), 0);
  EXPECT_EQ(reported.sa_sigaction, &skip_ud2);
  _tile_release();
}

// ---- Kernel bugs -------------------------------------------------------------------------------

// The hardware answers with a signal and no words; the emulator must refuse the same, in words.
void expect_refused(void (*bug)(), const char* words) {
  EXPECT_DEATH(bug(), emulated() ? words : "");
}

void product_of(const Config& config) {
  Tile a, b, c;
  Busd(&config, &c, &a, &b);
}

TEST_F(Amx, RefusesWhatTheHardwareRefuses) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  expect_refused([] { load_config({.palette = 2}); }, "LDTILECFG.*palette");
  expect_refused([] { load_config({.reserved = {1}}); }, "reserved");
  expect_refused([] { load_config({.colsb = {64}}); }, "rows or columns but not both");
  expect_refused([] { load_config({.colsb = {64}, .rows = {17}}); }, "exceeds");
  expect_refused([] { load_config({.colsb = {65}, .rows = {16}}); }, "exceeds");
  expect_refused(
      [] {
        Config config;
        config.shape(8, 16, 64);
        load_config(config);
      },
      "beyond the eighth");
  expect_refused([] { _tile_zero(0); }, "TILEZERO.*no tile configuration");
  expect_refused(
      [] {
        load_config(product_config(1, 1, 1));
        _tile_zero(3);
      },
      "has no shape");
  expect_refused(
      [] {
        Config config = product_config(16, 16, 16);
        config.shape(1, 15, 64);
        product_of(config);
      },
      "TDPBUSD.*rows of A and C");
  expect_refused(
      [] {
        Config config = product_config(16, 16, 16);
        config.shape(1, 16, 60);
        product_of(config);
      },
      "columns of A");
  expect_refused(
      [] {
        Config config = product_config(16, 16, 16);
        config.shape(2, 16, 60);
        product_of(config);
      },
      "columns of B and C");
  expect_refused(
      [] {
        Config config = product_config(16, 16, 16);
        config.shape(0, 16, 62);
        config.shape(2, 16, 62);
        product_of(config);
      },
      "multiple of 4");
  expect_refused([] { asm volatile("ud2"); }, "");
}

}  // namespace
