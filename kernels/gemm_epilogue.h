// What every GEMM does with 16 neighbouring int32 accumulators of one row. Textually included after
// one of simd/*.h, so that all instruction sets share this arithmetic to the bit.
#pragma once

#include "kernels.h"

namespace qla {
namespace {

// gelu(x) = x * Phi(x). Phi(x) - 1/2 is an odd degree-9 polynomial on [-3.42, 3.42], fitted to the
// error of gelu itself with Phi(3.42) = 1 held; beyond, x is clamped inside Phi only.
// |error| <= 1.08e-3, a twentieth of a u8 step (docs/numerics.md), or 2e-7 |x|, roundings of Phi
// and the product. The last coefficient is rounded so that Phi(-3.42) comes out negative:
// kLeastGelu holds for all x.
QLA_INLINE f32x16 gelu(f32x16 x) {
  const f32x16 t = clamp_magnitude(x, 3.42f);
  const f32x16 u = t * t;
  f32x16 p = set1(0x1.59e0f6p-17f);
  p = fma(p, u, set1(-0x1.accd0ep-12f));
  p = fma(p, u, set1(0x1.b47018p-8f));
  p = fma(p, u, set1(-0x1.e88cc2p-5f));
  p = fma(p, u, set1(0x1.939276p-2f));
  return x * fma(p, t, set1(0.5f));
}

// What 16 neighbouring columns bring to every row.
struct ColumnTerms {
  f32x16 sum, scale, bias;
  QLA_INLINE ColumnTerms(const GemmArgs& g, int col)
      : sum(load(g.col_sum + col)), scale(load(g.col_scale + col)), bias(load(g.bias + col)) {}
};

QLA_INLINE f32x16 dequantize(const GemmArgs& g, const ColumnTerms& column, i32x16 acc, int row) {
  const f32x16 sum = fnma(set1(g.row_zero[row]), column.sum, to_float(acc));
  return fma(sum, set1(g.row_scale[row]) * column.scale, column.bias);
}

// Per-lane maxima of a row's outputs: found in registers, merged into memory once per block.
struct Largest {
  f32x16 lanes = set1(kLeastGelu);
  QLA_INLINE void add(f32x16 y) { lanes = max(y, lanes); }
};

// Each output stores 16 neighbouring columns of a row by finish_columns. finish_row follows the
// last of a block's columns; `first`: they are the first of the call.
QLA_INLINE void finish_columns(const BiasOut& out, f32x16 y, int row, int col, Largest&) {
  store(out.c + static_cast<size_t>(row) * out.ldc + col, y);
}
QLA_INLINE void finish_row(const BiasOut&, const Largest&, int, bool) {}

QLA_INLINE void finish_columns(const GeluOut& out, f32x16 y, int row, int col, Largest& largest) {
  const f32x16 activated = gelu(y);
  store(out.c + static_cast<size_t>(row) * out.ldc + col, activated);
  largest.add(activated);
}
QLA_INLINE void finish_row(const GeluOut& out, const Largest& largest, int row, bool first) {
  float* to = out.row_max + 16 * row;
  store(to, first ? largest.lanes : max(largest.lanes, load(to)));
}

QLA_INLINE void finish_columns(const QkvOut& out, f32x16 y, int row, int col, Largest&) {
  // Column blocks of 16 never straddle heads: head_dim is 32 or 64, a power of two.
  const int head = col >> __builtin_ctz(static_cast<unsigned>(out.head_dim));
  store_bf16(out.row[row] + head * out.stride[row] + (col & (out.head_dim - 1)), y);
}
QLA_INLINE void finish_row(const QkvOut&, const Largest&, int, bool) {}

// A block's sums, row by row, kPanels * 16 columns wide.
template <int kRows, int kPanels>
struct alignas(64) BlockSums {
  int32_t row[kRows][16 * kPanels];
};

// A block whose sums are in memory, on the way through its epilogue.
//
// An epilogue that followed its block's products would wait for the last of them, and the next
// block's products would wait behind it: more instructions than any CPU looks ahead. So GEMMs
// finish a few rows of the block before after every step of k, and dot products and epilogues
// overlap in program order.
template <typename Out, int kRows, int kPanels>
class Unfinished {
 public:
  Unfinished(const GemmArgs& g, const Out& out, const BlockSums<kRows, kPanels>& sums)
      : g_(g), out_(out), sums_(sums) {}

  // How many rows to finish in each of `steps` steps.
  int share(int steps) const { return (rows_ - done_ + steps - 1) / steps; }

  QLA_INLINE void finish(int count) {
    const GemmArgs g = g_;  // which no store can alias
    const Out out = out_;
    const auto terms = [&](int panel) { return ColumnTerms(g, col_ + 16 * panel); };
    if constexpr (kPanels == 2) {
      // Two panels' terms stay in registers from row to row; four are better read where they lie.
      const ColumnTerms left = terms(0), right = terms(1);
      finish_rows(g, out, count, [&](int panel) { return panel == 0 ? left : right; });
    } else {
      finish_rows(g, out, count, terms);
    }
  }

  // The block whose sums are there from now on; nothing of the one before may be left.
  QLA_INLINE void begin(int row, int col, int rows) {
    row_ = row;
    col_ = col;
    rows_ = rows;
    done_ = 0;
  }

 private:
  template <typename Terms>
  QLA_INLINE void finish_rows(const GemmArgs& g, const Out& out, int count, Terms terms) {
    const int stop = count < rows_ - done_ ? done_ + count : rows_;
    for (; done_ < stop; ++done_) {
      const int row = row_ + done_;
      Largest largest;
#pragma GCC unroll 4
      for (int j = 0; j < kPanels; ++j) {
        const i32x16 sum = load(sums_.row[done_] + 16 * j);
        finish_columns(out, dequantize(g, terms(j), sum, row), row, col_ + 16 * j, largest);
      }
      finish_row(out, largest, row, col_ == g.first_col);
    }
  }

  const GemmArgs& g_;
  const Out& out_;
  const BlockSums<kRows, kPanels>& sums_;
  int row_ = 0, col_ = 0, rows_ = 0, done_ = 0;
};

// Defines a kernel of kernels.inc from a file's own `gemm`. A constant: nothing of an instruction
// set may run before it has been chosen.
#define QLA_DEFINE_GEMM(kernel, Format)                                        \
  extern const Gemm kernel;                                                    \
  constinit const Gemm kernel = {gemm<Format, BiasOut>, gemm<Format, GeluOut>, \
                                 gemm<Format, QkvOut>};

}  // namespace
}  // namespace qla
