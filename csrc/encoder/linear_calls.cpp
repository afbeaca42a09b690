#include "encoder/linear_calls.h"

#include <algorithm>

namespace qla {
namespace {

constexpr int kMaximaLanes = 16;  // of GemmArgs::row_max, by row

void quantize_rows(const ForwardPass& pass, const Linear& linear, Rows in_hand,
                   const float* gelu_max, RowScratch& t) {
  const QuantizeArgs how{linear.static_activation, linear.input_scale, linear.input_zero_point};
  const int at = in_hand.at;
  pass.kernels.quantize(t.rows + at, in_hand.count, linear.k, gelu_max, how,
                        t.a + static_cast<size_t>(at) * linear.k, t.scale + at, t.zero + at);
}

GemmArgs product_of(const Linear& linear, int rows, const RowScratch& t, Epilogue epilogue) {
  GemmArgs g{};
  g.a = t.a;
  g.lda = linear.k;
  g.b = linear.weight;
  g.rows = rows;
  g.k = linear.k;
  g.n = linear.n;
  g.last_col = linear.n;
  g.row_scale = t.scale;
  g.row_zero = t.zero;
  g.col_scale = linear.scale;
  g.bias = linear.bias;
  g.col_sum = linear.column_sum.front().value;
  g.epilogue = epilogue;
  g.c = t.c;
  g.ldc = linear.n;
  return g;
}

}  // namespace

void quantize(const ForwardPass& pass, const Linear& linear, Rows in_hand, RowScratch& t) {
  quantize_rows(pass, linear, in_hand, nullptr, t);
}

void quantize_gelu(const ForwardPass& pass, const Linear& linear, Rows in_hand, RowScratch& t) {
  quantize_rows(pass, linear, in_hand, t.gelu_max + kMaximaLanes * in_hand.at, t);
}

GemmArgs bias_product(const Linear& linear, int rows, const RowScratch& t) {
  return product_of(linear, rows, t, Epilogue::kBias);
}

GemmArgs gelu_product(const Linear& linear, int rows, const RowScratch& t) {
  GemmArgs g = product_of(linear, rows, t, Epilogue::kBiasGelu);
  g.row_max = t.gelu_max;
  return g;
}

GemmArgs qkv_product(const Linear& linear, int rows, const RowScratch& t, int head_dim) {
  GemmArgs g = product_of(linear, rows, t, Epilogue::kBiasQkv);
  g.qkv_row = t.qkv_row;
  g.qkv_stride = t.qkv_stride;
  g.head_dim = head_dim;
  return g;
}

void multiply(const ForwardPass& pass, const GemmArgs& product) { pass.kernels.gemm_u8s8(product); }

void multiply_by_columns(ForwardPass& pass, const GemmArgs& product, Member& m) {
  const Runs shares = pass.split.column_shares(product.n);
  pass.loops.run(m, shares.count(), [&](int i) {
    GemmArgs g = product;
    g.first_col = shares.first(i);
    g.last_col = g.first_col + shares.length(i);
    if (g.epilogue == Epilogue::kBiasGelu) {
      g.row_max += static_cast<size_t>(i) * kMaximaLanes * product.rows;
    }
    pass.kernels.gemm_u8s8(g);
  });
}

void join_maxima(const ForwardPass& pass, const Linear& linear, int rows, Rows in_hand,
                 RowScratch& t) {
  const int shares = pass.split.column_shares(linear.n).count();
  const size_t plane = static_cast<size_t>(rows) * kMaximaLanes;
  float* const first = t.gelu_max + kMaximaLanes * static_cast<size_t>(in_hand.at);
  const int lanes = kMaximaLanes * in_hand.count;
  for (int share = 1; share < shares; ++share) {
    const float* other = first + static_cast<size_t>(share) * plane;
    for (int i = 0; i < lanes; ++i) first[i] = std::max(first[i], other[i]);
  }
}

}  // namespace qla
