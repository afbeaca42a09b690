#include "encoder/selection.h"

#include <algorithm>
#include <limits>

namespace qla {
namespace {

// Column sums of all heads, heads ascending.
void sum_scores(ForwardPass& pass, int layer, int s) {
  const int n = pass.shape.tokens(layer, s);
  float* scores = pass.buffers.scores(layer, s);
  std::copy_n(pass.buffers.column_sums(layer, s, 0), n, scores);
  for (int head = 1; head < pass.spec.heads; ++head) {
    const float* sums = pass.buffers.column_sums(layer, s, head);
    for (int j = 0; j < n; ++j) scores[j] += sums[j];
  }
}

void report_scores(const ForwardPass& pass, int layer, int s) {
  const RaggedShape& shape = pass.shape;
  const float* scores = pass.buffers.scores(layer, s);
  const int32_t* origin = pass.buffers.origins(layer) + shape.start(layer, s);
  float* out = pass.chunk.out.scores + layer * pass.chunk.total_tokens;
  std::fill_n(out + shape.start(0, s), shape.tokens(0, s), std::numeric_limits<float>::quiet_NaN());
  for (int j = 0; j < shape.tokens(layer, s); ++j) out[origin[j]] = scores[j];
}

void select_rows(ForwardPass& pass, int layer, int s) {
  Buffers& buffers = pass.buffers;
  const int from = pass.shape.start(layer, s), to = pass.shape.start(layer + 1, s);
  const int n = pass.shape.tokens(layer, s), k = pass.shape.tokens(layer + 1, s);
  int32_t* const kept = buffers.sources() + to;
  if (k < n || pass.chunk.out.scores) sum_scores(pass, layer, s);
  if (pass.chunk.out.scores) report_scores(pass, layer, s);
  if (k < n) {
    const bool keep_cls = pass.chunk.keep_cls[s] != 0;
    select_top_k(buffers.scores(layer, s), n, k, keep_cls, buffers.rank() + from, kept);
  } else {
    for (int j = 0; j < n; ++j) kept[j] = j;
  }
  const int32_t* origin = buffers.origins(layer) + from;
  int32_t* next_origin = buffers.origins(layer + 1) + to;
  const float* states = buffers.states(layer) + buffers.row(from);
  for (int j = 0, i = 0; j < n; ++j) {
    if (i < k && kept[i] == j) {
      next_origin[i] = origin[j];
      kept[i++] = from + j;
    } else {
      buffers.copy_row(states + buffers.row(j), buffers.restored() + buffers.row(origin[j]));
    }
  }
}

}  // namespace

void select_tokens(ForwardPass& pass, int layer, Member& m) {
  pass.loops.run(m, pass.shape.sequences(), [&](int s) { select_rows(pass, layer, s); });
  m.clock.lap(QLA_STAGE_SELECT);
}

void note_kept(ForwardPass& pass, int layer, Rows in_hand) {
  int32_t* origin = pass.buffers.origins(layer + 1) + in_hand.first;
  if (!pass.selects(layer)) {
    std::copy_n(pass.buffers.origins(layer) + in_hand.first, in_hand.count, origin);
  }
  std::copy_n(origin, in_hand.count, pass.buffers.kept(layer) + in_hand.first);
}

}  // namespace qla
