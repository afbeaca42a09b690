// Linear layers as calls of kernels: the one place that fills in QuantizeArgs and GemmArgs.
#pragma once

#include "encoder/forward_pass.h"

namespace qla {

// t.rows to the u8 input of a linear layer. The second one is for GELU's outputs, whose largest
// values the product before it has left in t.gelu_max.
void quantize(const ForwardPass& pass, const Linear& linear, Rows in_hand, RowScratch& t);
void quantize_gelu(const ForwardPass& pass, const Linear& linear, Rows in_hand, RowScratch& t);

// A product of quantized rows on its way to the GEMM of its weights, and what becomes of it.
template <typename Out>
struct Product {
  WeightFormat format;
  GemmArgs args;
  Out out;
};

// Of `rows` rows, to t.c, by GELU to t.c, or to where t.qkv_row says.
Product<BiasOut> bias_product(const Linear& linear, int rows, const RowScratch& t);
Product<GeluOut> gelu_product(const Linear& linear, int rows, const RowScratch& t);
Product<QkvOut> qkv_product(const Linear& linear, int rows, const RowScratch& t, int head_dim);

// The whole product on one thread.
template <typename Out>
void multiply(const ForwardPass& pass, const Product<Out>& product) {
  pass.kernels.gemm(product.format)(product.args, product.out);
}

// The columns of the product shared out among the team. Each share of a gelu_product has maxima of
// its own: join_maxima, behind the next barrier, gives some of the rows those of all their columns.
template <typename Out>
void multiply_by_columns(ForwardPass& pass, const Product<Out>& product, Member& m);
void join_maxima(const ForwardPass& pass, const Linear& linear, int rows, Rows in_hand,
                 RowScratch& t);

}  // namespace qla
