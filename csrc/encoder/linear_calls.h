// Linear layers as calls of kernels: the one place that fills in QuantizeArgs and GemmArgs.
#pragma once

#include <type_traits>

#include "encoder/forward_pass.h"

namespace qla {

// t.rows to the u8 input of a linear layer. The second one is for GELU's outputs, whose largest
// values the product before it has left in t.gelu_max.
void quantize(const ForwardPass& pass, const Linear& linear, Rows in_hand, RowScratch& t);
void quantize_gelu(const ForwardPass& pass, const Linear& linear, Rows in_hand, RowScratch& t);

// A product of quantized rows on its way to a GEMM, and what becomes of it.
template <typename Out>
struct Product {
  WeightFormat format;
  GemmArgs args;
  Out out;
};

// The weights of `linear` that a member reads first, if columns are shared out; null: of no layer.
const int8_t* first_weights(const ForwardPass& pass, const Linear* linear, const Member& m);

// Of the first `rows` rows of t: to t.c, GELU of it to t.c, or Q, K and V to t.qkv_row.
Product<BiasOut> bias_product(const Linear& linear, int rows, const RowScratch& t);
Product<GeluOut> gelu_product(const Linear& linear, int rows, const RowScratch& t);
Product<QkvOut> qkv_product(const Linear& linear, int rows, const RowScratch& t, int head_dim);

// The whole product on one thread.
template <typename Out>
void multiply(const ForwardPass& pass, Product<Out> product, const Member& m) {
  product.args.scratch = pass.buffers.gemm_scratch(m.index);
  pass.kernels.gemm(product.format)(product.args, product.out);
}

// The columns of the product shared out among the team; `next`: the linear layer after it, if any.
// Each share of a gelu_product has maxima of its own: join_maxima, behind the next barrier, gives
// some of the rows those of all their columns.
template <typename Out>
void multiply_by_columns(ForwardPass& pass, const Product<Out>& whole, const Linear* next,
                         Member& m) {
  const Runs shares = pass.split.column_shares(whole.args.n);
  const int last_own = pass.loops.first_own(m.index + 1, shares.count()) - 1;
  pass.loops.run(m, shares.count(), [&](int i) {
    Product<Out> share = whole;
    share.args.first_col = shares.first(i);
    share.args.last_col = shares.first(i) + shares.length(i);
    share.args.next = i == last_own ? first_weights(pass, next, m) : nullptr;
    if constexpr (std::is_same_v<Out, GeluOut>) {
      share.out.row_max += static_cast<size_t>(i) * kMaximaLanes * whole.args.rows;
    }
    multiply(pass, share, m);
  });
}
void join_maxima(const ForwardPass& pass, const Linear& linear, int rows, Rows in_hand,
                 RowScratch& t);

}  // namespace qla
