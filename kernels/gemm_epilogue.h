// What every GEMM does with 16 neighbouring int32 accumulators of one row. Textually included after
// one of simd/*.h, so that all instruction sets share this arithmetic to the bit.
#pragma once

#include "kernels.h"

namespace qla {
namespace {

// gelu(x) = x * Phi(x). Phi(x) - 1/2 is an odd degree-13 polynomial on [-3.95, 3.95], fitted to the
// error of gelu itself with Phi(3.95) = 1 held; beyond, x is clamped inside Phi only.
// |error| <= 1.7e-4 everywhere in [-7, 7], a hundredth of a u8 step (docs/numerics.md).
QLA_INLINE f32x16 gelu(f32x16 x) {
  const f32x16 t = clamp_magnitude(x, 3.95f);
  const f32x16 u = t * t;
  f32x16 p = set1(0x1.a3cda6p-26f);
  p = fma(p, u, set1(-0x1.c347e4p-20f));
  p = fma(p, u, set1(0x1.9fabf6p-15f));
  p = fma(p, u, set1(-0x1.b2a7c4p-11f));
  p = fma(p, u, set1(0x1.21c3c4p-7f));
  p = fma(p, u, set1(-0x1.091ab8p-4f));
  p = fma(p, u, set1(0x1.9789d2p-2f));
  return x * fma(p, t, set1(0.5f));
}

// What 16 neighbouring columns bring to every row.
struct ColumnTerms {
  i32x16 sum;
  f32x16 scale, bias;
  QLA_INLINE ColumnTerms(const GemmArgs& g, int col)
      : sum(load(g.col_sum + col)), scale(load(g.col_scale + col)), bias(load(g.bias + col)) {}
};

QLA_INLINE f32x16 dequantize(const GemmArgs& g, const ColumnTerms& column, i32x16 acc, int row) {
  const i32x16 sum = acc - set1(g.row_zero[row]) * column.sum;
  return fma(to_float(sum), set1(g.row_scale[row]) * column.scale, column.bias);
}

// Per-lane range of a kBiasGelu row's outputs: found in registers, merged into memory once per
// block.
struct Range {
  f32x16 lo = set1(3.4028235e38f), hi = set1(-3.4028235e38f);

  QLA_INLINE void add(f32x16 y) {
    lo = min(y, lo);
    hi = max(y, hi);
  }
  // `col` is the block's first; the first block of a row has nothing to compare with yet.
  template <Epilogue kEpilogue>
  QLA_INLINE void merge(const GemmArgs& g, int row, int col) const {
    if constexpr (kEpilogue != Epilogue::kBiasGelu) return;
    float* to_lo = g.row_min + 16 * row;
    float* to_hi = g.row_max + 16 * row;
    // Both loads before both stores: the two arrays may lie a multiple of 4 KiB apart.
    const f32x16 least = col == 0 ? lo : min(lo, load(to_lo));
    const f32x16 most = col == 0 ? hi : max(hi, load(to_hi));
    store(to_lo, least);
    store(to_hi, most);
  }
};

template <Epilogue kEpilogue>
QLA_INLINE void finish(const GemmArgs& g, const ColumnTerms& column, i32x16 acc, int row, int col,
                       Range& range) {
  const f32x16 y = dequantize(g, column, acc, row);
  if constexpr (kEpilogue == Epilogue::kBias) {
    store(g.c + static_cast<size_t>(row) * g.ldc + col, y);
  } else if constexpr (kEpilogue == Epilogue::kBiasGelu) {
    const f32x16 activated = gelu(y);
    store(g.c + static_cast<size_t>(row) * g.ldc + col, activated);
    range.add(activated);
  } else {
    // Column blocks of 16 never straddle heads: head_dim is 32 or 64, a power of two.
    const int head = col >> __builtin_ctz(static_cast<unsigned>(g.head_dim));
    store_bf16(g.qkv_row[row] + head * g.qkv_stride[row] + (col & (g.head_dim - 1)), y);
  }
}

// Calls `kernel<epilogue>(g)`; keeps the switch out of every GEMM.
#define QLA_DISPATCH_EPILOGUE(kernel, g)     \
  switch ((g).epilogue) {                    \
    case Epilogue::kBias:                    \
      return kernel<Epilogue::kBias>(g);     \
    case Epilogue::kBiasGelu:                \
      return kernel<Epilogue::kBiasGelu>(g); \
    case Epilogue::kBiasQkv:                 \
      return kernel<Epilogue::kBiasQkv>(g);  \
  }

}  // namespace
}  // namespace qla
