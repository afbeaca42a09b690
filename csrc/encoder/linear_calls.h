// Linear layers as calls of kernels: the one place that fills in QuantizeArgs and GemmArgs.
#pragma once

#include "encoder/forward_pass.h"

namespace qla {

// t.rows to the u8 input of a linear layer. The second one is for GELU's outputs, whose largest
// values the product before it has left in t.gelu_max.
void quantize(const ForwardPass& pass, const Linear& linear, Rows in_hand, RowScratch& t);
void quantize_gelu(const ForwardPass& pass, const Linear& linear, Rows in_hand, RowScratch& t);

// A product of `rows` quantized rows, and what becomes of it: t.c, GELU of it in t.c, or Q, K and V
// at t.qkv_row.
GemmArgs bias_product(const Linear& linear, int rows, const RowScratch& t);
GemmArgs gelu_product(const Linear& linear, int rows, const RowScratch& t);
GemmArgs qkv_product(const Linear& linear, int rows, const RowScratch& t, int head_dim);

// The whole product on one thread.
void multiply(const ForwardPass& pass, const GemmArgs& product);

// The columns of the product shared out among the team. Each share of a gelu_product has maxima of
// its own: join_maxima, behind the next barrier, gives some of the rows those of all their columns.
void multiply_by_columns(ForwardPass& pass, const GemmArgs& product, Member& m);
void join_maxima(const ForwardPass& pass, const Linear& linear, int rows, Rows in_hand,
                 RowScratch& t);

}  // namespace qla
