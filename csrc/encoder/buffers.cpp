#include "encoder/buffers.h"

#include <algorithm>

namespace qla {
namespace {

RowScratch cut_scratch(Arena& arena, const EncoderSpec& spec, size_t rows, size_t column_shares) {
  const auto hidden = static_cast<size_t>(spec.hidden);
  const auto wide = static_cast<size_t>(std::max(spec.hidden, spec.intermediate));
  const bool packed_words = spec.word_embeddings == WordEmbeddings::kTernary;
  const size_t padded = (rows + kRowPadding - 1) / kRowPadding * kRowPadding;
  RowScratch t;
  t.a = arena.take<uint8_t>(padded * wide);
  t.c = arena.take<float>(rows * wide);
  t.y = arena.take<float>(rows * hidden);
  t.scale = arena.take<float>(rows);
  t.zero = arena.take<float>(rows);
  t.gelu_max = arena.take<float>(column_shares * rows * kMaximaLanes);
  t.rows = arena.take<const float*>(rows);
  t.words = arena.take<int8_t>(packed_words ? rows * hidden : 0);
  t.embed_rows = arena.take<EmbedRow>(rows);
  t.norm_rows = arena.take<NormRow>(rows);
  t.qkv_row = arena.take<uint16_t*>(rows);
  t.qkv_stride = arena.take<int64_t>(rows);
  return t;
}

// The most rows that any layer shares out by columns has.
int rows_by_columns(const RaggedShape& shape, const WorkSplit& split) {
  int most = 0;
  for (int layer = 0; layer <= shape.layers(); ++layer) {
    if (split.by_columns(shape.rows(layer))) most = std::max(most, shape.rows(layer));
  }
  return most;
}

}  // namespace

Buffers::Buffers(const Package& package, const RaggedShape& shape, const WorkSplit& split,
                 int threads, float* restored, Workspace& workspace)
    : shape_(shape),
      hidden_(static_cast<size_t>(package.encoder.hidden)),
      padded_rows_(static_cast<size_t>(shape.rows(0)) +
                   16 * static_cast<size_t>(shape.sequences())),
      blocks_(static_cast<size_t>(threads)),
      attention_(static_cast<size_t>(threads)),
      gemm_(static_cast<size_t>(threads)) {
  Arena measure(nullptr);
  cut(measure, package, split, restored);
  Arena arena(workspace.reserve(measure.used()));
  cut(arena, package, split, restored);
}

void Buffers::cut(Arena& arena, const Package& package, const WorkSplit& split, float* restored) {
  const EncoderSpec& spec = package.encoder;
  const auto rows = static_cast<size_t>(shape_.rows(0)), heads = static_cast<size_t>(spec.heads);
  for (float*& states : states_) states = arena.take<float>(rows * hidden_);
  context_ = arena.take<float>(rows * hidden_);
  qkv_ = arena.take<uint16_t>(rows * 3 * hidden_);
  column_sums_ = arena.take<float>(padded_rows_ * heads);
  scores_ = arena.take<float>(padded_rows_);
  rank_ = arena.take<uint64_t>(rows);
  sources_ = arena.take<int32_t>(rows);
  for (int32_t*& origins : origins_) origins = arena.take<int32_t>(rows);
  kept_ = arena.take<int32_t>(rows * static_cast<size_t>(spec.layers));
  restored_ = restored ? restored : arena.take<float>(rows * hidden_);
  for (RowScratch& block : blocks_) {
    block = cut_scratch(arena, spec, static_cast<size_t>(split.most_block_rows()), 1);
  }
  for (void*& scratch : attention_) {
    scratch = arena.take<std::byte>(attention_scratch_bytes(shape_.longest(), spec.head_dim));
  }
  for (int8_t*& scratch : gemm_) {
    scratch = arena.take<int8_t>(package.weights.most_gemm_scratch_bytes());
  }
  const Runs shares = split.column_shares(spec.intermediate);
  all_rows_ = cut_scratch(arena, spec, static_cast<size_t>(rows_by_columns(shape_, split)),
                          static_cast<size_t>(shares.count()));
}

}  // namespace qla
