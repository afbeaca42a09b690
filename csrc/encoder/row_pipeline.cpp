#include "encoder/row_pipeline.h"

#include "encoder/block_program.h"
#include "encoder/linear_calls.h"
#include "encoder/reports.h"
#include "encoder/selection.h"

namespace qla {
namespace {

Rows block_in_hand(const Runs& blocks, int i) { return {blocks.first(i), blocks.length(i), 0}; }

// Runs step(rows) on equal shares of all rows, one for each member.
template <typename Step>
void share_rows(ForwardPass& pass, int total, Member& m, Step step) {
  const Runs shares = pass.split.row_shares(total);
  pass.loops.run(m, shares.count(),
                 [&](int i) { step(Rows{shares.first(i), shares.length(i), shares.first(i)}); });
}

void embed(ForwardPass& pass, Rows in_hand, RowScratch& t) {
  int32_t* origin = pass.buffers.origins(0);
  for (int r = in_hand.first; r < in_hand.first + in_hand.count; ++r) origin[r] = r;
  pass.program.embed(pass, 0, in_hand, t);
  report_states(pass, 0, in_hand);
}

// Quantizes rows for Q, K and V, and says where each row's go.
void enter_attention(ForwardPass& pass, int layer, Rows in_hand, RowScratch& t) {
  pass.program.enter_attention(pass, layer, in_hand, t);
  const auto [first, count, at] = in_hand;
  const RaggedShape& shape = pass.shape;
  const int head_dim = pass.spec.head_dim;
  int s = shape.sequence_of(layer, first);
  for (int r = 0; r < count; ++r) {
    while (first + r >= shape.start(layer, s + 1)) ++s;
    const int position = first + r - shape.start(layer, s);
    t.qkv_row[at + r] = pass.buffers.qkv(layer, s) + static_cast<size_t>(position) * head_dim;
    t.qkv_stride[at + r] = static_cast<int64_t>(shape.tokens(layer, s)) * head_dim;
  }
}

Product<QkvOut> qkv_of(const ForwardPass& pass, int layer, int rows, const RowScratch& t) {
  return qkv_product(pass.weights(layer).qkv, rows, t, pass.spec.head_dim);
}

// Quantizes GELU's outputs for the second product of the feed-forward.
void enter_ffn_out(const ForwardPass& pass, int layer, Rows in_hand, RowScratch& t) {
  const auto wide = static_cast<size_t>(pass.spec.intermediate);
  for (int r = in_hand.at; r < in_hand.at + in_hand.count; ++r) t.rows[r] = t.c + r * wide;
  quantize_gelu(pass, pass.weights(layer).ffn_out, in_hand, t);
}

void leave_layer(ForwardPass& pass, int layer, Rows in_hand, RowScratch& t) {
  note_kept(pass, layer, in_hand);
  pass.program.leave_feed_forward(pass, layer, in_hand, t);
  report_states(pass, layer + 1, in_hand);
}

// A thread takes its rows through everything.
void finish_by_rows(ForwardPass& pass, int layer, Member& m) {
  const Layer& w = pass.weights(layer);
  const Runs blocks = pass.split.row_blocks(pass.shape.rows(layer + 1));
  RowScratch& t = pass.buffers.block(m.index);
  pass.loops.run(m, blocks.count(), [&](int i) {
    const Rows rows = block_in_hand(blocks, i);
    pass.program.leave_attention(pass, layer, rows, t);
    multiply(pass, bias_product(w.output, rows.count, t), m);
    pass.program.enter_feed_forward(pass, layer, rows, t);
    m.clock.lap(QLA_STAGE_OUTPUT);
    multiply(pass, gelu_product(w.ffn_in, rows.count, t), m);
    enter_ffn_out(pass, layer, rows, t);
    multiply(pass, bias_product(w.ffn_out, rows.count, t), m);
    leave_layer(pass, layer, rows, t);
    m.clock.lap(QLA_STAGE_FFN);
    if (layer + 1 == pass.spec.layers) return;
    enter_attention(pass, layer + 1, rows, t);
    multiply(pass, qkv_of(pass, layer + 1, rows.count, t), m);
    m.clock.lap(QLA_STAGE_QKV);
  });
}

// All threads take all rows from one product to the next: their own columns of it, then their own
// rows of what follows.
void finish_by_columns(ForwardPass& pass, int layer, Member& m) {
  const Layer& w = pass.weights(layer);
  const Layer* next = layer + 1 < pass.spec.layers ? &pass.weights(layer + 1) : nullptr;
  const int total = pass.shape.rows(layer + 1);
  RowScratch& t = pass.buffers.all_rows();
  share_rows(pass, total, m, [&](Rows r) { pass.program.leave_attention(pass, layer, r, t); });
  pass.loops.wait(m);
  multiply_by_columns(pass, bias_product(w.output, total, t), &w.ffn_in, m);
  m.clock.lap(QLA_STAGE_OUTPUT);
  pass.loops.wait(m);
  share_rows(pass, total, m, [&](Rows r) { pass.program.enter_feed_forward(pass, layer, r, t); });
  m.clock.lap(QLA_STAGE_OUTPUT);
  pass.loops.wait(m);
  multiply_by_columns(pass, gelu_product(w.ffn_in, total, t), &w.ffn_out, m);
  m.clock.lap(QLA_STAGE_FFN);
  pass.loops.wait(m);
  share_rows(pass, total, m, [&](Rows r) {
    join_maxima(pass, w.ffn_in, total, r, t);
    enter_ffn_out(pass, layer, r, t);
  });
  m.clock.lap(QLA_STAGE_FFN);
  pass.loops.wait(m);
  multiply_by_columns(pass, bias_product(w.ffn_out, total, t), next ? &next->qkv : nullptr, m);
  m.clock.lap(QLA_STAGE_FFN);
  pass.loops.wait(m);
  share_rows(pass, total, m, [&](Rows r) {
    leave_layer(pass, layer, r, t);
    if (next) enter_attention(pass, layer + 1, r, t);
  });
  m.clock.lap(QLA_STAGE_FFN);
  if (!next) return;
  pass.loops.wait(m);
  multiply_by_columns(pass, qkv_of(pass, layer + 1, total, t), &next->output, m);
  m.clock.lap(QLA_STAGE_QKV);
}

}  // namespace

void enter_encoder(ForwardPass& pass, Member& m) {
  const int total = pass.shape.rows(0);
  if (pass.split.by_columns(total)) {
    RowScratch& t = pass.buffers.all_rows();
    share_rows(pass, total, m, [&](Rows r) {
      embed(pass, r, t);
      enter_attention(pass, 0, r, t);
    });
    m.clock.lap(QLA_STAGE_EMBED);
    pass.loops.wait(m);
    multiply_by_columns(pass, qkv_of(pass, 0, total, t), &pass.weights(0).output, m);
    m.clock.lap(QLA_STAGE_QKV);
    return;
  }
  const Runs blocks = pass.split.row_blocks(total);
  RowScratch& t = pass.buffers.block(m.index);
  pass.loops.run(m, blocks.count(), [&](int i) {
    const Rows rows = block_in_hand(blocks, i);
    embed(pass, rows, t);
    m.clock.lap(QLA_STAGE_EMBED);
    enter_attention(pass, 0, rows, t);
    multiply(pass, qkv_of(pass, 0, rows.count, t), m);
    m.clock.lap(QLA_STAGE_QKV);
  });
}

void finish_layer(ForwardPass& pass, int layer, Member& m) {
  if (pass.split.by_columns(pass.shape.rows(layer + 1))) {
    finish_by_columns(pass, layer, m);
  } else {
    finish_by_rows(pass, layer, m);
  }
}

}  // namespace qla
