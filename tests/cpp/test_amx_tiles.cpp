// Tile configuration, loads and stores, what else happens in a thread or process, and what AMX
// refuses.
#include <signal.h>
#include <ucontext.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "amx_fixtures.h"

namespace {

// ---- Configuration -----------------------------------------------------------------------------

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
