// u8 x s8 GEMM on AVX2 without VNNI.
//
// VPMADDUBSW would saturate (255 * 127 * 2 > 32767) and give wrong answers on real models, so both
// operands are widened to 16 bits and multiplied by VPMADDWD, which is exact. One ymm then holds
// 4 columns x 4 k, i.e. two partial sums a column; they are joined once, after the k loop.
// 2 rows x 16 columns: 8 accumulators, 4 widened weight vectors, 2 broadcasts.
#include "simd/avx2.h"
//
#include "gemm_epilogue.h"

namespace qla {
namespace {

constexpr int kRows = 2;

// Columns 4q..4q+3 of a row's 16, k by k as 16-bit.
QLA_INLINE __m256i widen_weights(const int8_t* p) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
QLA_INLINE __m256i widen_activations(const uint8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  return _mm256_broadcastq_epi64(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(four)));
}

// {a0 a0' a1 a1' | a2 ..}, {b0 ..}: the two partial sums of each column added, columns in order.
QLA_INLINE __m256i join(__m256i first4, __m256i next4) {
  return _mm256_permute4x64_epi64(_mm256_hadd_epi32(first4, next4), 0xd8);
}

template <Epilogue kEpilogue, int kM>
void block(const GemmArgs& g, int row, int col) {
  __m256i acc[kM][4];
  for (int m = 0; m < kM; ++m) {
    for (int q = 0; q < 4; ++q) acc[m][q] = _mm256_setzero_si256();
  }
  const uint8_t* a = g.a + static_cast<size_t>(row) * g.lda;
  const size_t slab = static_cast<size_t>(g.n) * 64;
  for (int k = 0; k < g.k; k += 64) {
    const int8_t* b = g.b + k / 64 * slab + static_cast<size_t>(col) * 64;
    for (int step = 0; step < 16; ++step) {
      __m256i x[kM];
#pragma GCC unroll 2
      for (int m = 0; m < kM; ++m) {
        x[m] = widen_activations(a + static_cast<size_t>(m) * g.lda + k + step * 4);
      }
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) {
        const __m256i w = widen_weights(b + step * 64 + q * 16);
#pragma GCC unroll 2
        for (int m = 0; m < kM; ++m) {
          acc[m][q] = _mm256_add_epi32(acc[m][q], _mm256_madd_epi16(x[m], w));
        }
      }
    }
  }
  for (int m = 0; m < kM; ++m) {
    const i32x16 sum = {join(acc[m][0], acc[m][1]), join(acc[m][2], acc[m][3])};
    finish<kEpilogue>(g, sum, row + m, col);
  }
}

template <Epilogue kEpilogue>
void gemm(const GemmArgs& g) {
  for (int col = 0; col < g.n; col += 16) {
    int row = 0;
    for (; row + kRows <= g.rows; row += kRows) block<kEpilogue, kRows>(g, row, col);
    if (row < g.rows) block<kEpilogue, 1>(g, row, col);
  }
}

}  // namespace

void gemm_u8s8_avx2(const GemmArgs& g) { QLA_DISPATCH_EPILOGUE(gemm, g) }

}  // namespace qla
