// The GEMM on dot-product instructions: written once for every weight format, blocked by each ISA's
// register count.
//
// A block is at most kGemmRows rows x kGemmPanels * 16 columns; every step of 4 k loads the panels'
// weights and one broadcast of 4 activation bytes a row. Columns are the outer loop: the weights of
// 64 columns (24 KiB at k = 384, 192 KiB at k = 3072) come from memory once and stay in L1 or L2
// while all rows of the call pass over them.
//
// Textually included after one of the simd headers that define Quad, Columns and Dot16.
#pragma once

#include "gemm_epilogue.h"
#include "weight_format_w2a8.h"
#include "weight_format_w8a8.h"

namespace qla {
namespace {

// Seven instructions unpack what 24 multiply by six rows. Where these compete for the same two
// ports, the four stores of unpacking once pay from the third block of rows on. On Zen 5, which
// multiplies on two of four ports, registers win by a tenth and more up to here.
constexpr int kMostRowsInRegisters = 4 * kGemmRows;

// From this depth on, 64 columns of weights fill L1, and several blocks of rows pass over them
// while memory idles, unless the next columns are asked for meanwhile. A single block of rows reads
// from front to back, as the hardware's prefetchers expect.
constexpr int kLeastDepthAhead = 512;

using Sums = BlockSums<kGemmRows, kGemmPanels>;
template <typename Out>
using BlockBefore = Unfinished<Out, kGemmRows, kGemmPanels>;

// Rows from `row` on by the weights `b` of `col` and its neighbours. Leaves its sums in `sums`,
// where it finds those of the block before. kAhead: asks for as many quads of `next`, the next
// columns' weights, so that memory also works while the other blocks of rows multiply.
template <typename Format, bool kAhead, int kRows, typename Out>
void gemm_block(const GemmArgs& g, const int8_t* b, const int8_t* next, int row, int col,
                Sums& sums, BlockBefore<Out>& before) {
  Dot16 sum[kRows][kGemmPanels];
  for (int m = 0; m < kRows; ++m) {
    for (int j = 0; j < kGemmPanels; ++j) sum[m][j] = dot_from(set1(0));
  }
  const uint8_t* a = g.a + static_cast<size_t>(row) * g.lda;
  const int share = before.share(g.k / 64);
  for (int k = 0; k < g.k; k += 64) {
#pragma GCC unroll 2
    for (int step = 0; step < 16; ++step, b += Format::kQuadBytes, next += Format::kQuadBytes) {
      if constexpr (kAhead) {
#pragma GCC unroll 4
        for (int line = 0; line < Format::kQuadBytes && line < 64 * kGemmPanels; line += 64) {
          __builtin_prefetch(next + line, 0, 2);
        }
      }
      Columns w[kGemmPanels];
#pragma GCC unroll 4
      for (int j = 0; j < kGemmPanels; ++j) w[j] = Format::load(b, j);
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

// A block of just `rows` rows, at most kRows.
template <typename Format, bool kAhead, int kRows = kGemmRows, typename Out>
void gemm_rows(const GemmArgs& g, const int8_t* b, const int8_t* next, int row, int rows, int col,
               Sums& sums, BlockBefore<Out>& before) {
  if constexpr (kRows > 0) {
    if (rows == kRows) {
      return gemm_block<Format, kAhead, kRows>(g, b, next, row, col, sums, before);
    }
    gemm_rows<Format, kAhead, kRows - 1>(g, b, next, row, rows, col, sums, before);
  }
}

// All rows by the weights `b` of `col` and its neighbours.
template <typename Format, bool kAhead, typename Out>
void gemm_columns(const GemmArgs& g, const int8_t* b, int col, Sums& sums,
                  BlockBefore<Out>& before) {
  const bool last = col / 64 * 64 + 64 >= g.last_col;
  const int8_t* next = last && g.next ? g.next + col % 64 * 4
                                      : b + Format::kQuadBytes * static_cast<size_t>(g.k / 4);
  // Equal blocks: a single row below a full one would wait for its own few sums.
  int blocks = (g.rows + kGemmRows - 1) / kGemmRows;
  for (int row = 0, rows; blocks > 0; row += rows, --blocks) {
    rows = (g.rows - row + blocks - 1) / blocks;
    gemm_rows<Format, kAhead>(g, b, next, row, rows, col, sums, before);
  }
}

template <typename Format, typename Out>
void gemm(const GemmArgs& g, const Out& out) {
  Sums sums;
  BlockBefore<Out> before(g, out, sums);
  // Packed weights are unpacked once for all rows, or on the way to each block of them.
  constexpr bool kInRegisters = !Format::kPacked || kGemmPanels == 4;
  const bool unpacks = !kInRegisters || (Format::kPacked && g.rows > kMostRowsInRegisters);
  // One panel of four at a time is no reading from front to back, whatever the rows.
  const bool sequential = kGemmPanels == 4 && g.rows <= kGemmRows;
  const bool ahead = Format::kPacked || (g.k > kLeastDepthAhead && !sequential);
  for (int col = g.first_col; col < g.last_col; col += 16 * kGemmPanels) {
    const int8_t* b = Format::columns(g.b, g.k, col);
    if constexpr (Format::kPacked) {
      if (unpacks) {
        if (col % 64 == 0) Format::unpack(b, g.k, g.scratch);
        gemm_columns<W8A8, false>(g, W8A8::columns(g.scratch, g.k, col % 64), col, sums, before);
      }
    }
    if constexpr (kInRegisters) {
      if (!unpacks && ahead) gemm_columns<Format, true>(g, b, col, sums, before);
      if (!unpacks && !ahead) gemm_columns<Format, false>(g, b, col, sums, before);
    }
  }
  before.finish(kGemmRows);
}

}  // namespace
}  // namespace qla
