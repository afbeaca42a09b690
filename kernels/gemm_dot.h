// The GEMM on dot-product instructions: written once for every weight format, blocked by each ISA's
// register count.
//
// A block is at most Dots::kRows rows x kGemmPanels * 16 columns; every step of 4 k loads the
// panels' weights and one broadcast of 4 activations a row. Columns are the outer loop: the weights
// of 64 columns (24 KiB at k = 384, 192 KiB at k = 3072) come from memory once and stay in L1 or L2
// while all rows of the call pass over them.
//
// Textually included after one of the simd headers that define ByteDots and TernaryDots.
#pragma once

#include <type_traits>

#include "gemm_epilogue.h"
#include "weight_format_w2a8.h"
#include "weight_format_w8a8.h"

namespace qla {
namespace {

// With which instructions weights of a format are multiplied.
template <typename Format>
using DotsOf = std::conditional_t<Format::kMostMagnitude == 1, TernaryDots, ByteDots>;

// Rows that are widened at once, into all of a call's scratch.
constexpr int kWidenedRows = 32;

// Seven instructions unpack what 24 multiply by six rows. Where these compete for the same two
// ports, the four stores of unpacking once pay from the third block of rows on. On Zen 5, which
// multiplies on two of four ports, registers win by a tenth and more up to here.
constexpr int kMostRowsInRegisters = 4 * 6;

// From this depth on, 64 columns of weights fill L1, and several blocks of rows pass over them
// while memory idles, unless the next columns are asked for meanwhile. A single block of rows reads
// from front to back, as the hardware's prefetchers expect.
constexpr int kLeastDepthAhead = 512;

template <typename Dots>
using Sums = BlockSums<Dots::kRows, kGemmPanels>;
template <typename Dots, typename Out>
using BlockBefore = Unfinished<Out, Dots::kRows, kGemmPanels>;

// Rows [first, first + count) of a call, as a block reads them.
template <typename Activation>
struct Activations {
  const Activation* values;
  size_t ld;
  int first, count;
  const Activation* row(int i) const { return values + static_cast<size_t>(i - first) * ld; }
};

template <typename Format, typename Dots, int kRows>
QLA_INLINE auto load_weights(const int8_t* quad, int panel) {
  if constexpr (Format::kPacked) {
    return Format::load(quad, panel);
  } else {
    return Dots::template columns<kRows>(Format::panel(quad, panel));
  }
}

// Rows from `row` on by the weights `b` of `col` and its neighbours: pass kPass over all k. Leaves
// its sums in `sums`, where the first pass finds those of the block before. kAhead: asks for as
// many quads of `next`, the next columns' weights, so that memory also works while the other blocks
// of rows multiply.
template <typename Format, typename Dots, bool kAhead, int kRows, int kPass, typename Out>
QLA_BLOCK_FUNCTION void gemm_pass(const GemmArgs& g,
                                  const Activations<typename Dots::Activation>& x, const int8_t* b,
                                  const int8_t* next, int row, Sums<Dots>& sums,
                                  BlockBefore<Dots, Out>& before) {
  constexpr int kColumns = 16 / Dots::template kPasses<kRows>;
  typename Dots::template Sum<kRows> sum[kRows][kGemmPanels] = {};
  const auto* a = x.row(row);
  const int share = before.share(g.k / 64);
  b += 4 * kColumns * kPass;
  for (int k = 0; k < g.k; k += 64) {
#pragma GCC unroll 2
    for (int step = 0; step < 16; ++step, b += Format::kQuadBytes, a += 4) {
      if constexpr (kAhead) {
#pragma GCC unroll 4
        for (int line = 0; line < Format::kQuadBytes && line < 64 * kGemmPanels; line += 64) {
          __builtin_prefetch(next + line, 0, 2);
        }
        next += Format::kQuadBytes;
      }
      decltype(load_weights<Format, Dots, kRows>(b, 0)) w[kGemmPanels];
#pragma GCC unroll 4
      for (int j = 0; j < kGemmPanels; ++j) w[j] = load_weights<Format, Dots, kRows>(b, j);
#pragma GCC unroll 6
      for (int m = 0; m < kRows; ++m) {
        const auto four = Dots::quad(a + static_cast<size_t>(m) * x.ld);
#pragma GCC unroll 4
        for (int j = 0; j < kGemmPanels; ++j) accumulate(sum[m][j], four, w[j]);
      }
    }
    if constexpr (Dots::kMostDepth > 0) {
      if ((k + 64) % Dots::kMostDepth == 0) {
#pragma GCC unroll 6
        for (int m = 0; m < kRows; ++m) {
          for (int j = 0; j < kGemmPanels; ++j) carry(sum[m][j]);
        }
      }
    }
    if constexpr (kPass == 0) before.finish(share);
  }
#pragma GCC unroll 6
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int j = 0; j < kGemmPanels; ++j) {
      store(sums.row[m] + 16 * j + kColumns * kPass, total(sum[m][j]));
    }
  }
}

template <typename Format, typename Dots, bool kAhead, int kRows, typename Out>
void gemm_block(const GemmArgs& g, const Activations<typename Dots::Activation>& x, const int8_t* b,
                const int8_t* next, int row, int col, Sums<Dots>& sums,
                BlockBefore<Dots, Out>& before) {
  constexpr int kPasses = Dots::template kPasses<kRows>;
  static_assert(kPasses <= 2);
  gemm_pass<Format, Dots, kAhead, kRows, 0>(g, x, b, next, row, sums, before);
  if constexpr (kPasses == 2) {
    gemm_pass<Format, Dots, false, kRows, 1>(g, x, b, next, row, sums, before);
  }
  before.begin(row, col, kRows);
}

// A block of just `rows` rows, at most kRows.
template <typename Format, typename Dots, bool kAhead, int kRows = Dots::kRows, typename Out>
void gemm_rows(const GemmArgs& g, const Activations<typename Dots::Activation>& x, const int8_t* b,
               const int8_t* next, int row, int rows, int col, Sums<Dots>& sums,
               BlockBefore<Dots, Out>& before) {
  if constexpr (kRows > 0) {
    if (rows == kRows) {
      return gemm_block<Format, Dots, kAhead, kRows>(g, x, b, next, row, col, sums, before);
    }
    gemm_rows<Format, Dots, kAhead, kRows - 1>(g, x, b, next, row, rows, col, sums, before);
  }
}

// The rows of `x` by the weights `b` of `col` and its neighbours.
template <typename Format, typename Dots, bool kAhead, typename Out>
void gemm_columns(const GemmArgs& g, const Activations<typename Dots::Activation>& x,
                  const int8_t* b, int col, Sums<Dots>& sums, BlockBefore<Dots, Out>& before) {
  const bool last = col / 64 * 64 + 64 >= g.last_col;
  const int8_t* next = last && g.next ? g.next + col % 64 * 4
                                      : b + Format::kQuadBytes * static_cast<size_t>(g.k / 4);
  // Equal blocks: a single row below a full one would wait for its own few sums.
  int blocks = (x.count + Dots::kRows - 1) / Dots::kRows;
  const int stop = x.first + x.count;
  for (int row = x.first, rows; blocks > 0; row += rows, --blocks) {
    rows = (stop - row + blocks - 1) / blocks;
    gemm_rows<Format, Dots, kAhead>(g, x, b, next, row, rows, col, sums, before);
  }
}

// The rows of `x` by all columns.
template <typename Format, typename Dots, typename Out>
void gemm_all_columns(const GemmArgs& g, const Activations<typename Dots::Activation>& x,
                      Sums<Dots>& sums, BlockBefore<Dots, Out>& before) {
  // Packed weights are unpacked once for all rows, or on the way to each block of them.
  constexpr bool kInRegisters = !Format::kPacked || kGemmPanels == 4;
  const bool unpacks = !kInRegisters || (Format::kPacked && x.count > kMostRowsInRegisters);
  // One panel of four at a time is no reading from front to back, whatever the rows.
  const bool sequential = kGemmPanels == 4 && x.count <= Dots::kRows;
  const bool ahead = Format::kPacked || (g.k > kLeastDepthAhead && !sequential);
  for (int col = g.first_col; col < g.last_col; col += 16 * kGemmPanels) {
    const int8_t* b = Format::columns(g.b, g.k, col);
    if constexpr (Format::kPacked) {
      if (unpacks) {
        if (col % 64 == 0) Format::unpack(b, g.k, g.scratch);
        const int8_t* unpacked = W8A8::columns(g.scratch, g.k, col % 64);
        gemm_columns<W8A8, Dots, false>(g, x, unpacked, col, sums, before);
      }
    }
    if constexpr (kInRegisters) {
      if (!unpacks && ahead) gemm_columns<Format, Dots, true>(g, x, b, col, sums, before);
      if (!unpacks && !ahead) gemm_columns<Format, Dots, false>(g, x, b, col, sums, before);
    }
  }
}

template <typename Format, typename Out>
void gemm(const GemmArgs& g, const Out& out) {
  using Dots = DotsOf<Format>;
  Sums<Dots> sums;
  BlockBefore<Dots, Out> before(g, out, sums);
  if constexpr (Dots::kWidens) {
    const auto widened = reinterpret_cast<typename Dots::Activation*>(g.scratch);
    const auto depth = static_cast<size_t>(g.k);
    for (int row = 0; row < g.rows; row += kWidenedRows) {
      const int count = g.rows - row < kWidenedRows ? g.rows - row : kWidenedRows;
      for (int i = 0; i < count; ++i) {
        const size_t at = static_cast<size_t>(i);
        Dots::activations(g.a + static_cast<size_t>(row + i) * g.lda, g.k, widened + at * depth);
      }
      gemm_all_columns<Format, Dots>(g, {widened, depth, row, count}, sums, before);
    }
  } else {
    gemm_all_columns<Format, Dots>(g, {g.a, static_cast<size_t>(g.lda), 0, g.rows}, sums, before);
  }
  before.finish(Dots::kRows);
}

}  // namespace
}  // namespace qla
