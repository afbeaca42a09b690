// u8 x s8 GEMM on dot-product instructions: written once, blocked by each ISA's register count.
//
// A block is kGemmRows rows x kGemmPanels * 16 columns; every step of 4 k loads the panels' weights
// and one broadcast of 4 activation bytes a row. Columns are the outer loop: one panel of B (24 KiB
// for 64 columns at k = 384) stays in L1 while all rows of the call pass over it.
//
// Textually included after one of the simd headers that define Quad, Columns and Dot16.
#pragma once

#include "gemm_epilogue.h"

namespace qla {
namespace {

using Sums = BlockSums<kGemmRows, kGemmPanels>;
template <Epilogue kEpilogue>
using BlockBefore = Unfinished<kEpilogue, kGemmRows, kGemmPanels>;

// Leaves its sums in `sums`, where it finds those of the block before.
template <Epilogue kEpilogue, int kRows>
void gemm_block(const GemmArgs& g, int row, int col, Sums& sums, BlockBefore<kEpilogue>& before) {
  Dot16 sum[kRows][kGemmPanels];
  for (int m = 0; m < kRows; ++m) {
    for (int j = 0; j < kGemmPanels; ++j) sum[m][j] = dot_from(set1(0));
  }
  const uint8_t* a = g.a + static_cast<size_t>(row) * g.lda;
  const size_t slab = static_cast<size_t>(g.n) * 64;  // one k64 slice of B
  const int share = before.share(g.k / 64);
  for (int k = 0; k < g.k; k += 64) {
    const int8_t* b = g.b + k / 64 * slab + static_cast<size_t>(col) * 64;
#pragma GCC unroll 2
    for (int step = 0; step < 16; ++step) {
      Columns w[kGemmPanels];
#pragma GCC unroll 4
      for (int j = 0; j < kGemmPanels; ++j) w[j] = load_columns(b + j * 1024 + step * 64);
#pragma GCC unroll 6
      for (int m = 0; m < kRows; ++m) {
        const Quad x = load_quad(a + static_cast<size_t>(m) * g.lda + k + step * 4);
#pragma GCC unroll 4
        for (int j = 0; j < kGemmPanels; ++j) accumulate(sum[m][j], x, w[j]);
      }
    }
    before.finish(share);
  }
#pragma GCC unroll 6
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int j = 0; j < kGemmPanels; ++j) store(sums.row[m] + 16 * j, total(sum[m][j]));
  }
  before.begin(row, col, kRows);
}

// What is left below a whole block of rows, in one block of just that size.
template <Epilogue kEpilogue, int kRows = kGemmRows - 1>
void gemm_tail(const GemmArgs& g, int row, int col, Sums& sums, BlockBefore<kEpilogue>& before) {
  if constexpr (kRows > 0) {
    if (g.rows - row == kRows) return gemm_block<kEpilogue, kRows>(g, row, col, sums, before);
    gemm_tail<kEpilogue, kRows - 1>(g, row, col, sums, before);
  }
}

template <Epilogue kEpilogue>
void gemm(const GemmArgs& g) {
  Sums sums;
  BlockBefore<kEpilogue> before(g, sums);
  for (int col = 0; col < g.n; col += 16 * kGemmPanels) {
    int row = 0;
    for (; row + kGemmRows <= g.rows; row += kGemmRows) {
      gemm_block<kEpilogue, kGemmRows>(g, row, col, sums, before);
    }
    gemm_tail<kEpilogue>(g, row, col, sums, before);
  }
  before.finish(kGemmRows);
}

}  // namespace
}  // namespace qla
