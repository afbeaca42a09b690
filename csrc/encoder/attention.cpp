#include "encoder/attention.h"

#include <cmath>

namespace qla {
namespace {

void attend_head(ForwardPass& pass, int layer, int s, int head, void* scratch) {
  const EncoderSpec& spec = pass.spec;
  const Buffers& buffers = pass.buffers;
  const int n = pass.shape.tokens(layer, s);
  const size_t plane = static_cast<size_t>(n) * spec.head_dim;
  const bool scored = pass.chunk.out.scores || pass.shape.tokens(layer + 1, s) < n;
  AttentionArgs a{};
  a.q = buffers.qkv(layer, s) + head * plane;
  a.k = a.q + spec.heads * plane;
  a.v = a.k + spec.heads * plane;
  a.n = n;
  a.head_dim = spec.head_dim;
  a.scale = 1.0f / std::sqrt(static_cast<float>(spec.head_dim));
  a.out = buffers.context() + buffers.row(pass.shape.start(layer, s)) + head * spec.head_dim;
  a.ld_out = spec.hidden;
  a.column_sum = scored ? buffers.column_sums(layer, s, head) : nullptr;
  a.scratch = scratch;
  pass.kernels.attention(a);
}

}  // namespace

void attend(ForwardPass& pass, int layer, Member& m) {
  const int heads = pass.spec.heads;
  void* const scratch = pass.buffers.attention_scratch(m.index);
  pass.loops.run(m, pass.shape.sequences() * heads, [&](int i) {
    attend_head(pass, layer, pass.shape.longest_first(i / heads), i % heads, scratch);
  });
  m.clock.lap(QLA_STAGE_ATTENTION);
}

}  // namespace qla
