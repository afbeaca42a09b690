// AMX tiles and their operands for the test_amx_*.cpp, which hold every AMX instruction that the
// kernels use to its definition in plain C++.
//
// On a CPU with AMX they compare the hardware with the definitions (above all the rounding rule of
// TDPBF16PS, which docs/numerics.md speaks of). With libamx_emulator.so preloaded they hold the
// emulator to the same. With neither they skip, saying why.
#pragma once

#include <gtest/gtest.h>
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include <random>

#include "cpu_features.h"

extern "C" __attribute__((weak, visibility("default"))) int qla_amx_emulator_active(void);

inline bool emulated() { return qla_amx_emulator_active && qla_amx_emulator_active() == 1; }

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
inline std::mt19937& rng() {
  static thread_local std::mt19937 generator(20251120);
  return generator;
}

inline int random_int(int low, int high) {
  return std::uniform_int_distribution<int>(low, high)(rng());
}

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

// One tile product.
#define PRODUCT(Name, intrinsic, tc, ta, tb)                                             \
  OPAQUE inline void Name(const Config* config, Tile* c, const Tile* a, const Tile* b) { \
    _tile_loadconfig(config);                                                            \
    _tile_loadd(tc, c, 64);                                                              \
    _tile_loadd(ta, a, 64);                                                              \
    _tile_stream_loadd(tb, b, 64);                                                       \
    intrinsic(tc, ta, tb);                                                               \
    _tile_stored(tc, c, 64);                                                             \
  }
PRODUCT(Busd, _tile_dpbusd, 0, 1, 2)

// C is m x n, A is m x (4 k bytes), B is k x n; in dwords.
inline Config product_config(int m, int n, int k, int tc = 0, int ta = 1, int tb = 2) {
  Config config;
  config.shape(tc, m, 4 * n);
  config.shape(ta, m, 4 * k);
  config.shape(tb, k, 4 * n);
  return config;
}

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

inline Tile random_tile() {
  Tile tile;
  for (auto& row : tile.bytes)
    for (uint8_t& byte : row) byte = static_cast<uint8_t>(rng()());
  return tile;
}

// Only the bytes that saturating or sign-confusing arithmetic gets wrong.
inline Tile extreme_tile() {
  constexpr uint8_t kBytes[] = {0x00, 0x01, 0x7f, 0x80, 0x81, 0xff};
  Tile tile;
  for (auto& row : tile.bytes)
    for (uint8_t& byte : row) byte = kBytes[random_int(0, 5)];
  return tile;
}

inline bool same(const Tile& a, const Tile& b) { return memcmp(&a, &b, sizeof a) == 0; }

// Not the intrinsics: GCC 12's claim to touch 8 of the 64 bytes only.
inline void load_config(const Config& config) { asm volatile("ldtilecfg %0" ::"m"(config)); }
inline Config store_config() {
  Config config;
  memset(static_cast<void*>(&config), 0xee, sizeof config);
  asm volatile("sttilecfg %0" : "+m"(config));
  return config;
}
