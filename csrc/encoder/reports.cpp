#include "encoder/reports.h"

#include <algorithm>

#include "lengths.h"

namespace qla {
namespace {

// (rows of layer 0, hidden) of out.hidden_states.
float* hidden_plane(const ForwardPass& pass, int layer) {
  return pass.chunk.out.hidden_states + static_cast<size_t>(layer) *
                                            static_cast<size_t>(pass.chunk.total_tokens) *
                                            pass.spec.hidden;
}

void report_macs(const ForwardPass& pass) {
  const Chunk& chunk = pass.chunk;
  for (int s = 0; s < chunk.num_sequences; ++s) {
    const int32_t* tokens = chunk.tokens + static_cast<size_t>(s) * (pass.spec.layers + 1);
    chunk.out.macs[s] = count_macs(pass.spec, pass.package.task, tokens);
  }
}

void report_kept(const ForwardPass& pass) {
  const Chunk& chunk = pass.chunk;
  const RaggedShape& shape = pass.shape;
  for (int layer = 0; layer < shape.layers(); ++layer) {
    for (int s = 0; s < shape.sequences(); ++s) {
      const int n = shape.tokens(layer + 1, s), first = shape.start(0, s);
      if (chunk.out.kept_counts) chunk.out.kept_counts[layer * chunk.total_sequences + s] = n;
      if (!chunk.out.kept) continue;
      const int32_t* from = pass.buffers.kept(layer) + shape.start(layer + 1, s);
      int32_t* to = chunk.out.kept + layer * chunk.total_tokens + first;
      for (int j = 0; j < n; ++j) to[j] = from[j] - first;
      std::fill_n(to + n, shape.tokens(0, s) - n, -1);
    }
  }
}

// A dropped token's state is its last one: copy it down the planes it did not take part in.
void carry_states(const ForwardPass& pass) {
  const RaggedShape& shape = pass.shape;
  for (int layer = 0; layer < shape.layers(); ++layer) {
    const float* before = hidden_plane(pass, layer);
    float* after = hidden_plane(pass, layer + 1);
    const int32_t* kept = pass.buffers.kept(layer);
    const int32_t* const end = kept + shape.rows(layer + 1);
    for (int r = 0; r < shape.rows(0); ++r) {
      if (kept != end && *kept == r) {
        ++kept;
      } else {
        pass.buffers.copy_row(before + pass.buffers.row(r), after + pass.buffers.row(r));
      }
    }
  }
}

}  // namespace

void report_states(const ForwardPass& pass, int layer, Rows in_hand) {
  if (!pass.chunk.out.hidden_states) return;
  const Buffers& b = pass.buffers;
  float* plane = hidden_plane(pass, layer);
  for (int r = in_hand.first; r < in_hand.first + in_hand.count; ++r) {
    b.copy_row(b.state(layer, r), plane + b.row(b.origins(layer)[r]));
  }
}

void report(const ForwardPass& pass) {
  const qla_outputs& out = pass.chunk.out;
  if (out.macs) report_macs(pass);
  if (out.kept_counts || out.kept) report_kept(pass);
  if (out.hidden_states) carry_states(pass);
}

}  // namespace qla
