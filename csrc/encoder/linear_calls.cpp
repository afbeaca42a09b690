#include "encoder/linear_calls.h"

#include <algorithm>

namespace qla {
namespace {

void quantize_rows(const ForwardPass& pass, const Linear& linear, Rows in_hand,
                   const float* gelu_max, RowScratch& t) {
  const QuantizeArgs how{linear.static_activation, linear.input_scale, linear.input_zero_point};
  const int at = in_hand.at;
  pass.kernels.quantize(t.rows + at, in_hand.count, linear.k, gelu_max, how,
                        t.a + static_cast<size_t>(at) * linear.k, t.scale + at, t.zero + at);
}

template <typename Out>
Product<Out> product_of(const Linear& linear, int rows, const RowScratch& t, const Out& out) {
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
  return {linear.format, g, out};
}

}  // namespace

const int8_t* first_weights(const ForwardPass& pass, const Linear* linear, const Member& m) {
  if (!linear) return nullptr;
  const Runs shares = pass.split.column_shares(linear->n);
  const int column = shares.first(pass.loops.first_own(m.index, shares.count()));
  return linear->weight + weight_bytes(linear->format, linear->k, column);
}

void quantize(const ForwardPass& pass, const Linear& linear, Rows in_hand, RowScratch& t) {
  quantize_rows(pass, linear, in_hand, nullptr, t);
}

void quantize_gelu(const ForwardPass& pass, const Linear& linear, Rows in_hand, RowScratch& t) {
  quantize_rows(pass, linear, in_hand, t.gelu_max + kMaximaLanes * in_hand.at, t);
}

Product<BiasOut> bias_product(const Linear& linear, int rows, const RowScratch& t) {
  return product_of(linear, rows, t, BiasOut{t.c, linear.n});
}

Product<GeluOut> gelu_product(const Linear& linear, int rows, const RowScratch& t) {
  return product_of(linear, rows, t, GeluOut{t.c, linear.n, t.gelu_max});
}

Product<QkvOut> qkv_product(const Linear& linear, int rows, const RowScratch& t, int head_dim) {
  return product_of(linear, rows, t, QkvOut{t.qkv_row, t.qkv_stride, head_dim});
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
