#include "encoder/linear_calls.h"

#include <algorithm>
#include <type_traits>

namespace qla {
namespace {

constexpr int kMaximaLanes = 16;  // of GeluOut::row_max, by row

void quantize_rows(const ForwardPass& pass, const Linear& linear, Rows in_hand,
                   const float* gelu_max, RowScratch& t) {
  const QuantizeArgs how{linear.static_activation, linear.input_scale, linear.input_zero_point};
  const int at = in_hand.at;
  pass.kernels.quantize(t.rows + at, in_hand.count, linear.k, gelu_max, how,
                        t.a + static_cast<size_t>(at) * linear.k, t.scale + at, t.zero + at);
}

template <typename Out>
Product<Out> product(const Linear& linear, int rows, const RowScratch& t, const Out& out) {
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

void quantize(const ForwardPass& pass, const Linear& linear, Rows in_hand, RowScratch& t) {
  quantize_rows(pass, linear, in_hand, nullptr, t);
}

void quantize_gelu(const ForwardPass& pass, const Linear& linear, Rows in_hand, RowScratch& t) {
  quantize_rows(pass, linear, in_hand, t.gelu_max + kMaximaLanes * in_hand.at, t);
}

Product<BiasOut> bias_product(const Linear& linear, int rows, const RowScratch& t) {
  return product(linear, rows, t, BiasOut{t.c, linear.n});
}

Product<GeluOut> gelu_product(const Linear& linear, int rows, const RowScratch& t) {
  return product(linear, rows, t, GeluOut{t.c, linear.n, t.gelu_max});
}

Product<QkvOut> qkv_product(const Linear& linear, int rows, const RowScratch& t, int head_dim) {
  return product(linear, rows, t, QkvOut{t.qkv_row, t.qkv_stride, head_dim});
}

template <typename Out>
void multiply_by_columns(ForwardPass& pass, const Product<Out>& whole, Member& m) {
  const Runs shares = pass.split.column_shares(whole.args.n);
  pass.loops.run(m, shares.count(), [&](int i) {
    Product<Out> p = whole;
    p.args.first_col = shares.first(i);
    p.args.last_col = p.args.first_col + shares.length(i);
    if constexpr (std::is_same_v<Out, GeluOut>) {
      p.out.row_max += static_cast<size_t>(i) * kMaximaLanes * whole.args.rows;
    }
    multiply(pass, p);
  });
}
template void multiply_by_columns(ForwardPass&, const Product<BiasOut>&, Member&);
template void multiply_by_columns(ForwardPass&, const Product<GeluOut>&, Member&);
template void multiply_by_columns(ForwardPass&, const Product<QkvOut>&, Member&);

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
