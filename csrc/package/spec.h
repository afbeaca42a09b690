// What config.json says of a model: the shape of its encoder, and what its head computes.
#pragma once

#include <cstddef>

#include "qla/qla.h"

namespace qla {

// Where LayerNorms stand in a block.
enum class NormPlacement { kPost };  // behind each residual

// How rows of word embeddings are stored: a byte a value, or two bits.
enum class WordEmbeddings { kS8, kTernary };

struct EncoderSpec {
  NormPlacement norm = NormPlacement::kPost;
  int layers = 0, hidden = 0, heads = 0, head_dim = 0, intermediate = 0;
  int vocab_size = 0, max_positions = 0, position_offset = 0, type_vocab_size = 0;
  float norm_eps = 0.0f;
  WordEmbeddings word_embeddings = WordEmbeddings::kS8;
};

struct TaskSpec {
  qla_task kind = QLA_TASK_EMBEDDING;
  int max_length = 0;  // tokens that callers cut a text at
  bool keep_cls = true;
  int outputs = 0;          // columns of the logits (hidden for embeddings)
  bool has_pooler = false;  // dense + tanh on the CLS row before the head
  bool mean_pooling = true;
  bool normalize = false;

  // Whether logits have a row for each token, or for each sequence.
  bool logits_per_token() const {
    return kind == QLA_TASK_SPAN_QA || kind == QLA_TASK_TOKEN_CLASSIFICATION;
  }
};

}  // namespace qla
