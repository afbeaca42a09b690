// The GEMM with TDPBUSD: 2 x 2 tiles, 32 rows x 32 columns.
//
//   tmm0..3  accumulators   (0: top left, 1: top right, 2: bottom left, 3: bottom right)
//   tmm4,5   A: 16 rows x 64 k
//   tmm6,7   B: 64 k x 16 columns, 16 rows of 4 k each
//
// Tiles reach the vector unit only through memory, and at k = 384 a block is just 24 tile products:
// an epilogue that waited for them would cost as much again (Unfinished, gemm_epilogue.h).
#include "simd/avx512.h"
//
#include "gemm_epilogue.h"
#include "tiles.h"
#include "weight_format_w2a8.h"
#include "weight_format_w8a8.h"

namespace qla {
namespace {

constexpr int kBlock = 32;  // rows and columns

template <typename Out>
using BlockBefore = Unfinished<Out, kBlock, kBlock / 16>;

// Where tiles find the weights of `col` and its neighbours, as w8a8.
template <typename Format>
const int8_t* columns(const GemmArgs& g, int col) {
  if constexpr (!Format::kPacked) {
    return Format::columns(g.b, g.k, col);
  } else {
    if (col % 64 == 0) {
      Format::unpack(Format::columns(g.b, g.k, col), g.k, g.scratch);
      publish_to_tiles();
    }
    return W8A8::columns(g.scratch, g.k, col % 64);
  }
}

// The products of one block by the weights `b` of its columns, into tmm0..1 or (more than 16 rows)
// tmm0..3.
template <bool kBottom, typename Out>
QLA_INLINE void multiply(const GemmArgs& g, const int8_t* b, int row, BlockBefore<Out>& before) {
  const uint8_t* a0 = g.a + static_cast<size_t>(row) * g.lda;
  const uint8_t* a1 = a0 + static_cast<size_t>(16) * g.lda;
  const int64_t lda = g.lda;
  const int share = before.share(g.k / 64);
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (kBottom) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int k = 0; k < g.k; k += 64, b += W8A8::kBlockBytes) {
    _tile_loadd(6, W8A8::panel(b, 0), W8A8::kQuadBytes);
    _tile_loadd(4, a0 + k, lda);
    _tile_dpbusd(0, 4, 6);
    _tile_loadd(7, W8A8::panel(b, 1), W8A8::kQuadBytes);
    _tile_dpbusd(1, 4, 7);
    if constexpr (kBottom) {
      _tile_loadd(5, a1 + k, lda);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    }
    before.finish(share);
  }
}

template <typename Format, typename Out>
void gemm(const GemmArgs& g, const Out& out) {
  BlockSums<kBlock, kBlock / 16> sums;
  constexpr int kStride = sizeof sums.row[0];
  BlockBefore<Out> before(g, out, sums);
  publish_to_tiles();
  for (int col = g.first_col; col < g.last_col; col += kBlock) {
    const int8_t* b = columns<Format>(g, col);
    for (int row = 0; row < g.rows; row += kBlock) {
      const int rows = g.rows - row < kBlock ? g.rows - row : kBlock;
      if (rows > 16) {
        multiply<true>(g, b, row, before);
      } else {
        multiply<false>(g, b, row, before);
      }
      _tile_stored(0, sums.row[0], kStride);
      _tile_stored(1, sums.row[0] + 16, kStride);
      if (rows > 16) {
        _tile_stored(2, sums.row[16], kStride);
        _tile_stored(3, sums.row[16] + 16, kStride);
      }
      before.begin(row, col, rows);
    }
  }
  before.finish(kBlock);
}

}  // namespace

QLA_DEFINE_GEMM(gemm_u8s8_amx, W8A8)
QLA_DEFINE_GEMM(gemm_u8s2_amx, W2A8)

void load_tile_config() {
  static const TileConfig config;
  publish_to_tiles();
  _tile_loadconfig(&config);
}
void release_tile_config() { _tile_release(); }

}  // namespace qla
