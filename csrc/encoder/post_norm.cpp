// Blocks as in BERT: x = LayerNorm(x + attention(x)), then x = LayerNorm(x + feed_forward(x)).
// Embeddings are the sum of three tables' rows, and a LayerNorm.
#include "encoder/block_program.h"
#include "encoder/forward_pass.h"
#include "encoder/linear_calls.h"
#include "encoder/selection.h"

namespace qla {
namespace {

// Asks for a row that another core may have written.
void fetch_row(const float* x, int hidden) {
  constexpr int kToL2 = 2;  // a block of rows is more than L1 holds
  for (int i = 0; i < hidden; i += 16) __builtin_prefetch(x + i, 0, kToL2);
}

// Values of one row of word embeddings: where they lie, or unpacked to `scratch`.
const int8_t* word_row(const ForwardPass& pass, int id, int8_t* scratch) {
  const int8_t* rows = pass.package.weights.embeddings.word;
  if (pass.spec.word_embeddings == WordEmbeddings::kS8) return rows + pass.buffers.row(id);
  unpack_row(rows + pass.buffers.row(id) / 4, pass.spec.hidden, scratch);
  return scratch;
}

void embed(ForwardPass& pass, int layer, Rows in_hand, RowScratch& t) {
  const auto [first, count, at] = in_hand;
  const Buffers& b = pass.buffers;
  const Embeddings& e = pass.package.weights.embeddings;
  const Chunk& chunk = pass.chunk;
  int s = pass.shape.sequence_of(layer, first);
  for (int i = 0; i < count; ++i) {
    const int r = first + i;
    while (r >= pass.shape.start(layer, s + 1)) ++s;
    const int position = r - pass.shape.start(layer, s) + pass.spec.position_offset;
    const int id = chunk.ids[r], type = chunk.types ? chunk.types[r] : 0;
    t.embed_rows[at + i] = {word_row(pass, id, t.words + b.row(at + i)), e.word_scale[id],
                            e.position + b.row(position), e.token_type + b.row(type),
                            b.state(layer, r)};
  }
  pass.kernels.embed_norm(t.embed_rows + at, count, pass.norm_args(e.norm), pass.spec.hidden);
}

void enter_attention(ForwardPass& pass, int layer, Rows in_hand, RowScratch& t) {
  const auto [first, count, at] = in_hand;
  const float* x = pass.buffers.states(layer);
  for (int r = 0; r < count; ++r) t.rows[at + r] = x + pass.buffers.row(first + r);
  quantize(pass, pass.weights(layer).qkv, in_hand, t);
}

void leave_attention(ForwardPass& pass, int layer, Rows in_hand, RowScratch& t) {
  const auto [first, count, at] = in_hand;
  const Buffers& b = pass.buffers;
  const int hidden = pass.spec.hidden;
  const float* x = b.states(layer);
  for (int r = 0; r < count; ++r) {
    const size_t source = b.row(source_row(pass, layer, first + r));
    t.rows[at + r] = b.context() + source;
    t.norm_rows[at + r] = {t.c + b.row(at + r), x + source, t.y + b.row(at + r)};
    fetch_row(t.rows[at + r], hidden);
  }
  quantize(pass, pass.weights(layer).output, in_hand, t);
  for (int r = 0; r < count; ++r) fetch_row(t.norm_rows[at + r].residual, hidden);
}

void enter_feed_forward(ForwardPass& pass, int layer, Rows in_hand, RowScratch& t) {
  const auto [first, count, at] = in_hand;
  const Layer& w = pass.weights(layer);
  pass.kernels.residual_norm(t.norm_rows + at, count, pass.norm_args(w.attention_norm),
                             pass.spec.hidden);
  for (int r = 0; r < count; ++r) t.rows[at + r] = t.y + pass.buffers.row(at + r);
  quantize(pass, w.ffn_in, in_hand, t);
}

void leave_feed_forward(ForwardPass& pass, int layer, Rows in_hand, RowScratch& t) {
  const auto [first, count, at] = in_hand;
  const Buffers& b = pass.buffers;
  for (int r = 0; r < count; ++r) {
    t.norm_rows[at + r] = {t.c + b.row(at + r), t.y + b.row(at + r), b.state(layer + 1, first + r)};
  }
  pass.kernels.residual_norm(t.norm_rows + at, count, pass.norm_args(pass.weights(layer).ffn_norm),
                             pass.spec.hidden);
}

}  // namespace

const BlockProgram kPostNorm = {embed, enter_attention, leave_attention, enter_feed_forward,
                                leave_feed_forward};

}  // namespace qla
