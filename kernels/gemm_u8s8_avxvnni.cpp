// u8 x s8 GEMM with VPDPBUSD on ymm (AVX-VNNI): 6 rows x 16 columns, 12 accumulators, 2 weight
// vectors, 1 broadcast. The same packed weights as AMX and AVX-512: a 64-byte row of a B tile is
// two ymm of 8 columns.
#include "simd/avx2.h"
//
#include "gemm_epilogue.h"

namespace qla {
namespace {

constexpr int kRows = 6;

template <Epilogue kEpilogue, int kM>
void block(const GemmArgs& g, int row, int col) {
  i32x16 acc[kM];
  for (int m = 0; m < kM; ++m) acc[m] = set1(0);
  const uint8_t* a = g.a + static_cast<size_t>(row) * g.lda;
  const size_t slab = static_cast<size_t>(g.n) * 64;
  for (int k = 0; k < g.k; k += 64) {
    const int8_t* b = g.b + k / 64 * slab + static_cast<size_t>(col) * 64;
#pragma GCC unroll 2
    for (int step = 0; step < 16; ++step) {
      const __m256i lo = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + step * 64));
      const __m256i hi = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + step * 64 + 32));
#pragma GCC unroll 6
      for (int m = 0; m < kM; ++m) {
        int32_t four;
        __builtin_memcpy(&four, a + static_cast<size_t>(m) * g.lda + k + step * 4, 4);
        const __m256i x = _mm256_set1_epi32(four);
        acc[m].lo = _mm256_dpbusd_avx_epi32(acc[m].lo, x, lo);
        acc[m].hi = _mm256_dpbusd_avx_epi32(acc[m].hi, x, hi);
      }
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < kM; ++m) finish<kEpilogue>(g, acc[m], row + m, col);
}

template <Epilogue kEpilogue>
void gemm(const GemmArgs& g) {
  for (int col = 0; col < g.n; col += 16) {
    int row = 0;
    for (; row + kRows <= g.rows; row += kRows) block<kEpilogue, kRows>(g, row, col);
    for (; row + 2 <= g.rows; row += 2) block<kEpilogue, 2>(g, row, col);
    if (row < g.rows) block<kEpilogue, 1>(g, row, col);
  }
}

}  // namespace

void gemm_u8s8_avxvnni(const GemmArgs& g) { QLA_DISPATCH_EPILOGUE(gemm, g) }

}  // namespace qla
