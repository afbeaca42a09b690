// u8 x s8 GEMM with VPDPBUSD on zmm.
//
// 6 rows x 64 columns: 24 accumulators, 4 weight vectors, 1 broadcast of 4 activation bytes; each
// step of 4 k costs 24 dot products for 10 loads, so the dot-product ports stay the limit.
// Columns are the outer loop: one 64-column panel of B (24 KiB at k = 384) stays in L1 while all
// rows of the call pass over it.
#include "simd/avx512.h"
//
#include "gemm_epilogue.h"

namespace qla {
namespace {

constexpr int kRows = 6;
constexpr int kPanel = 4;  // zmm of 16 columns

QLA_INLINE __m512i broadcast4(const uint8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  return _mm512_set1_epi32(four);
}

template <Epilogue kEpilogue, int kM>
void block(const GemmArgs& g, int row, int col) {
  __m512i acc[kM][kPanel];
  for (int m = 0; m < kM; ++m) {
    for (int j = 0; j < kPanel; ++j) acc[m][j] = _mm512_setzero_si512();
  }
  const uint8_t* a = g.a + static_cast<size_t>(row) * g.lda;
  const size_t slab = static_cast<size_t>(g.n) * 64;  // one k64 slice of B
  for (int k = 0; k < g.k; k += 64) {
    const int8_t* b = g.b + k / 64 * slab + static_cast<size_t>(col) * 64;
#pragma GCC unroll 2
    for (int step = 0; step < 16; ++step) {
      __m512i w[kPanel];
#pragma GCC unroll 4
      for (int j = 0; j < kPanel; ++j) w[j] = _mm512_loadu_si512(b + j * 1024 + step * 64);
#pragma GCC unroll 6
      for (int m = 0; m < kM; ++m) {
        const __m512i x = broadcast4(a + static_cast<size_t>(m) * g.lda + k + step * 4);
#pragma GCC unroll 4
        for (int j = 0; j < kPanel; ++j) acc[m][j] = _mm512_dpbusd_epi32(acc[m][j], x, w[j]);
      }
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 4
    for (int j = 0; j < kPanel; ++j) {
      finish<kEpilogue>(g, {acc[m][j]}, row + m, col + 16 * j);
    }
  }
}

template <Epilogue kEpilogue>
void gemm(const GemmArgs& g) {
  for (int col = 0; col < g.n; col += 16 * kPanel) {
    int row = 0;
    for (; row + kRows <= g.rows; row += kRows) block<kEpilogue, kRows>(g, row, col);
    switch (g.rows - row) {
      case 5:
        block<kEpilogue, 5>(g, row, col);
        break;
      case 4:
        block<kEpilogue, 4>(g, row, col);
        break;
      case 3:
        block<kEpilogue, 3>(g, row, col);
        break;
      case 2:
        block<kEpilogue, 2>(g, row, col);
        break;
      case 1:
        block<kEpilogue, 1>(g, row, col);
        break;
    }
  }
}

}  // namespace

void gemm_u8s8_avx512vnni(const GemmArgs& g) { QLA_DISPATCH_EPILOGUE(gemm, g) }

}  // namespace qla
