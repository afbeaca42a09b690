// u8 x s8 GEMM with TDPBUSD: 2 x 2 tiles, 32 rows x 32 columns.
//
//   tmm0..3  accumulators   (0: top left, 1: top right, 2: bottom left, 3: bottom right)
//   tmm4,5   A: 16 rows x 64 k
//   tmm6,7   B: 64 k x 16 columns, one contiguous KiB each in the packed weights
//
// Tiles reach the vector unit only through memory. At k = 384 a block is just 24 tile products, so
// the epilogue would cost as much again if it waited for them: the accumulators of a block are
// stored to one half of a scratch, and while the next block's products run, the vector unit
// finishes the half stored before.
#include "simd/avx512.h"
//
#include "gemm_epilogue.h"
#include "tiles.h"

namespace qla {
namespace {

struct alignas(64) BlockScratch {
  int32_t tile[4][16][16];
};

struct Block {
  int row, col;
  bool bottom;  // whether rows 16..31 hold anything
};

void multiply(const GemmArgs& g, Block at, BlockScratch* out) {
  const uint8_t* a0 = g.a + static_cast<size_t>(at.row) * g.lda;
  const uint8_t* a1 = a0 + static_cast<size_t>(16) * g.lda;
  const int8_t* b = g.b + static_cast<size_t>(at.col) * 64;
  const size_t slab = static_cast<size_t>(g.n) * 64;
  const int64_t lda = g.lda;
  _tile_zero(0);
  _tile_zero(1);
  if (at.bottom) {
    _tile_zero(2);
    _tile_zero(3);
    for (int k = 0; k < g.k; k += 64, b += slab) {
      _tile_loadd(6, b, kTileBytes);
      _tile_loadd(4, a0 + k, lda);
      _tile_dpbusd(0, 4, 6);
      _tile_loadd(7, b + 1024, kTileBytes);
      _tile_dpbusd(1, 4, 7);
      _tile_loadd(5, a1 + k, lda);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    }
    _tile_stored(2, out->tile[2], kTileBytes);
    _tile_stored(3, out->tile[3], kTileBytes);
  } else {
    for (int k = 0; k < g.k; k += 64, b += slab) {
      _tile_loadd(6, b, kTileBytes);
      _tile_loadd(4, a0 + k, lda);
      _tile_dpbusd(0, 4, 6);
      _tile_loadd(7, b + 1024, kTileBytes);
      _tile_dpbusd(1, 4, 7);
    }
  }
  _tile_stored(0, out->tile[0], kTileBytes);
  _tile_stored(1, out->tile[1], kTileBytes);
}

template <Epilogue kEpilogue>
void finish_block(const GemmArgs& args, Block at, const BlockScratch& in) {
  const GemmArgs g = args;  // a copy of its own, which no store can alias, stays in registers
  const ColumnTerms left(g, at.col), right(g, at.col + 16);
  for (int half = 0; half < 2; ++half) {
    const int first = at.row + 16 * half;
    const int rows = g.rows - first < 16 ? g.rows - first : 16;
    for (int r = 0; r < rows; ++r) {
      Range range;
      finish<kEpilogue>(g, left, load(in.tile[2 * half][r]), first + r, at.col, range);
      finish<kEpilogue>(g, right, load(in.tile[2 * half + 1][r]), first + r, at.col + 16, range);
      range.merge<kEpilogue>(g, first + r, at.col);
    }
  }
}

template <Epilogue kEpilogue>
void gemm(const GemmArgs& g) {
  BlockScratch scratch[2];
  Block pending{-1, 0, false};
  int half = 0;
  for (int col = 0; col < g.n; col += 32) {
    for (int row = 0; row < g.rows; row += 32) {
      const Block at{row, col, g.rows - row > 16};
      multiply(g, at, &scratch[half]);
      half ^= 1;
      if (pending.row >= 0) finish_block<kEpilogue>(g, pending, scratch[half]);
      pending = at;
    }
  }
  finish_block<kEpilogue>(g, pending, scratch[half ^ 1]);
}

}  // namespace

void gemm_u8s8_amx(const GemmArgs& g) { QLA_DISPATCH_EPILOGUE(gemm, g) }

void load_tile_config() {
  static const TileConfig config;
  publish_to_tiles();
  _tile_loadconfig(&config);
}
void release_tile_config() { _tile_release(); }

}  // namespace qla
