// Attention with TDPBUSD: queries, weights, keys and values are packed as the tiles want them.
//   tmm0..1  accumulators, tmm4 A, tmm6..7 B
#include "simd/avx512.h"
//
#include "attention.h"
#include "tiles.h"

namespace qla {
namespace {

class AmxProducts {
 public:
  AmxProducts(const AttentionArgs& args, const AttentionScratch& scratch) : a_(args), w_(scratch) {}

  // A head of 32 dims fills half of a tile's k; the other half is zeros.
  void scores(int rows, float* peak) const {
    const int64_t stride = static_cast<int64_t>(w_.ld) * 4;
    publish_to_tiles();
    _tile_loadd(4, w_.queries, kRowBytes);
    for (int j = 0; j < w_.ld; j += 32) {
      // Stride 0: every query's sums start from the same row of key offsets.
      _tile_loadd(0, w_.key_offset + j, 0);
      _tile_loadd(1, w_.key_offset + j + 16, 0);
      _tile_loadd(6, w_.keys + static_cast<size_t>(j / 16) * kTileBytes, kTileRowBytes);
      _tile_dpbusd(0, 4, 6);
      _tile_loadd(7, w_.keys + static_cast<size_t>(j / 16 + 1) * kTileBytes, kTileRowBytes);
      _tile_dpbusd(1, 4, 7);
      _tile_stored(0, w_.s_int + j, stride);
      _tile_stored(1, w_.s_int + j + 16, stride);
    }
    for (int r = 0; r < rows; r += 4) {
      f32x16 biggest[4] = {set1(kNoScore), set1(kNoScore), set1(kNoScore), set1(kNoScore)};
      for (int j = 0; j < a_.n; j += 16) {
        const KeyTerms keys16(w_, j);
        const int32_t* sum = w_.s_int + static_cast<size_t>(r) * w_.ld + j;
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q, sum += w_.ld) keys16.scale(w_, r + q, load(sum), biggest[q]);
      }
      for (int q = 0; q < 4; ++q) peak[r + q] = reduce_max(biggest[q]);
    }
  }

  void values(int q0, int rows, const float* inverse) const {
    alignas(64) int32_t sum[2][16][16];
    publish_to_tiles();
    for (int d = 0; d < a_.head_dim; d += 32) {
      _tile_zero(0);
      _tile_zero(1);
      for (int t = 0; t < w_.ld; t += 64) {
        const int8_t* block =
            w_.values + static_cast<size_t>(t) * a_.head_dim + d / 16 * kTileBytes;
        _tile_loadd(4, w_.weights + t, w_.ld);
        _tile_loadd(6, block, kTileRowBytes);
        _tile_dpbusd(0, 4, 6);
        _tile_loadd(7, block + kTileBytes, kTileRowBytes);
        _tile_dpbusd(1, 4, 7);
      }
      _tile_stored(0, sum[0], kTileRowBytes);
      _tile_stored(1, sum[1], kTileRowBytes);
      for (int r = 0; r < rows; ++r) {
        float* out = a_.out + static_cast<size_t>(q0 + r) * a_.ld_out + d;
        for (int p = 0; p < 2; ++p) {
          store(out + 16 * p, scale_output(w_, load(sum[p][r]), d + 16 * p, inverse[r]));
        }
      }
    }
  }

 private:
  const AttentionArgs& a_;
  const AttentionScratch& w_;
};

}  // namespace

void attention_amx(const AttentionArgs& a) { attention<AmxProducts>(a); }

}  // namespace qla
