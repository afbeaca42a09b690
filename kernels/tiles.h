// The one AMX tile configuration: eight tiles of 16 rows x 64 bytes. Ragged edges are padded in
// memory instead of reconfigured, since LDTILECFG costs as much as a dozen tile products.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace qla {
namespace {

constexpr int kTileRowBytes = 64, kTileBytes = 16 * kTileRowBytes;

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

// GCC 12's _tile_loadd does not tell the compiler that it reads memory: without this, stores meant
// for the tile could be moved behind the load, or dropped.
inline void publish_to_tiles() { asm volatile("" ::: "memory"); }

}  // namespace
}  // namespace qla
