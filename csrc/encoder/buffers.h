// The arrays of a forward pass, all cut from one workspace.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "encoder/ragged_shape.h"
#include "encoder/work_split.h"
#include "kernels.h"
#include "package/package.h"
#include "workspace.h"

namespace qla {

constexpr int kMaximaLanes = 16;  // of GeluOut::row_max, by row

// What a run of rows needs on its way through a layer: the block that one thread has in hand, or
// all rows of the chunk while the threads share out columns.
struct RowScratch {
  uint8_t* a;            // u8 activations: (rows padded, max(hidden, intermediate))
  float* c;              // GEMM result: (rows, max(hidden, intermediate))
  float* y;              // normalized attention output: (rows, hidden)
  float* scale;          // (rows)
  float* zero;           // (rows)
  float* gelu_max;       // (column shares, rows, kMaximaLanes)
  const float** rows;    // (rows): what is quantized
  int8_t* words;         // (rows, hidden) word embeddings, where the package packs them
  EmbedRow* embed_rows;  // (rows)
  NormRow* norm_rows;    // (rows)
  uint16_t** qkv_row;    // (rows)
  int64_t* qkv_stride;   // (rows)
};

// Rows of a layer in hand: `count` compact rows from `first` on, whose scratch begins at `at`.
struct Rows {
  int first, count, at;
};

class Buffers {
 public:
  // `restored`: where the encoder's result goes, (rows of layer 0, hidden); null: an array of our
  // own. Throws std::bad_alloc.
  Buffers(const Package& package, const RaggedShape& shape, const WorkSplit& split, int threads,
          float* restored, Workspace& workspace);

  // Where a row of `hidden` floats begins.
  size_t row(int r) const { return static_cast<size_t>(r) * hidden_; }
  void copy_row(const float* from, float* to) const { memcpy(to, from, hidden_ * sizeof(float)); }

  // The hidden states that enter a layer: compact rows. Two layers' lie side by side.
  float* states(int layer) const { return states_[layer % 2]; }
  // Where such a row stands in the chunk as it was given: its row of layer 0.
  int32_t* origins(int layer) const { return origins_[layer % 2]; }
  // Where one row that enters a layer lies; behind the last one, at its origin in restored().
  float* state(int layer, int r) const {
    return layer == shape_.layers() ? restored() + row(origins(layer)[r]) : states(layer) + row(r);
  }
  // Every original row, each in the last state that it had: what the head reads.
  float* restored() const { return restored_; }

  // Q, K and V of a sequence lie together: 3 x heads planes of (tokens, head_dim), bf16.
  uint16_t* qkv(int layer, int sequence) const {
    return qkv_ + 3 * row(shape_.start(layer, sequence));
  }
  float* context() const { return context_; }  // attention's output, compact rows

  // Of each sequence, with room up to the next multiple of 16: what each token got from one head's
  // queries, and from all heads'.
  float* column_sums(int layer, int sequence, int head) const {
    return column_sums_ + static_cast<size_t>(head) * padded_rows_ + padded_start(layer, sequence);
  }
  float* scores(int layer, int sequence) const { return scores_ + padded_start(layer, sequence); }
  uint64_t* rank() const { return rank_; }  // select_top_k's scratch, by compact row

  // Of the layer that runs: the row in which each row that it keeps entered it.
  int32_t* sources() const { return sources_; }
  // The origins of what a layer keeps, by compact row of the next layer.
  int32_t* kept(int layer) const { return kept_ + static_cast<size_t>(layer) * shape_.rows(0); }

  RowScratch& block(int member) { return blocks_[static_cast<size_t>(member)]; }
  RowScratch& all_rows() { return all_rows_; }  // of layers that share out columns
  void* attention_scratch(int member) const { return attention_[static_cast<size_t>(member)]; }
  int8_t* gemm_scratch(int member) const { return gemm_[static_cast<size_t>(member)]; }

 private:
  void cut(Arena& arena, const Package& package, const WorkSplit& split, float* restored);
  size_t padded_start(int layer, int sequence) const {
    return static_cast<size_t>(shape_.start(layer, sequence)) + 16 * static_cast<size_t>(sequence);
  }

  const RaggedShape& shape_;
  const size_t hidden_, padded_rows_;

  float* states_[2];
  int32_t* origins_[2];
  float* restored_;
  float* context_;
  uint16_t* qkv_;
  float* column_sums_;  // (heads, padded rows)
  float* scores_;
  uint64_t* rank_;
  int32_t* sources_;
  int32_t* kept_;                   // (layers, rows of layer 0)
  std::vector<RowScratch> blocks_;  // by member
  std::vector<void*> attention_;    // by member
  std::vector<int8_t*> gemm_;       // by member
  RowScratch all_rows_;
};

}  // namespace qla
