#include "batch_check.h"

#include <climits>
#include <cstdint>

#include "error.h"
#include "lengths.h"

namespace qla {
namespace {

using Long = long long;  // what %lld wants

constexpr int64_t kMostStages = 1024;  // more than any header will have: not a count

template <typename T>
void check_aligned(const T* pointer, const char* name) {
  if (reinterpret_cast<uintptr_t>(pointer) % alignof(T) != 0) {
    fail(QLA_INVALID_INPUT, "%s is not aligned to %zu bytes; pass an array of its own type", name,
         alignof(T));
  }
}

void check_pointers(const qla_batch& batch) {
  if (!batch.input_ids) fail(QLA_INVALID_INPUT, "input_ids is NULL; give the batch's token ids");
  if (!batch.offsets) {
    fail(QLA_INVALID_INPUT, "offsets is NULL; give num_sequences + 1 of them, from 0 on");
  }
  check_aligned(batch.input_ids, "input_ids");
  check_aligned(batch.token_type_ids, "token_type_ids");
  check_aligned(batch.offsets, "offsets");
  check_aligned(batch.lengths, "lengths");
  check_aligned(batch.length_index, "length_index");
}

void check_offsets(const qla_batch& batch, const EncoderSpec& spec) {
  if (batch.offsets[0] != 0) {
    fail(QLA_INVALID_INPUT, "offsets[0] is %lld; it must be 0", Long{batch.offsets[0]});
  }
  for (int64_t s = 0; s < batch.num_sequences; ++s) {
    const int64_t first = batch.offsets[s], end = batch.offsets[s + 1];
    if (end < first) {
      fail(QLA_INVALID_INPUT,
           "offsets[%lld] is %lld after %lld; offsets must rise, each to the end of its sequence",
           Long{s + 1}, Long{end}, Long{first});
    }
    if (end == first) {
      fail(QLA_INVALID_INPUT, "sequence %lld has 0 tokens; every sequence needs at least one",
           Long{s});
    }
    if (end - first > spec.max_positions) {
      fail(QLA_INVALID_INPUT,
           "sequence %lld has %lld tokens, but this model has max_positions = %d; truncate it or "
           "split it into windows",
           Long{s}, Long{end - first}, spec.max_positions);
    }
  }
}

void check_ids(const qla_batch& batch, int64_t s, const EncoderSpec& spec) {
  const int64_t first = batch.offsets[s];
  for (int64_t i = first; i < batch.offsets[s + 1]; ++i) {
    if (batch.input_ids[i] < 0 || batch.input_ids[i] >= spec.vocab_size) {
      fail(QLA_INVALID_INPUT,
           "input id %d at position %lld of sequence %lld is outside the vocabulary [0, %d); was "
           "the text tokenized for another model?",
           batch.input_ids[i], Long{i - first}, Long{s}, spec.vocab_size);
    }
    if (batch.token_type_ids &&
        (batch.token_type_ids[i] < 0 || batch.token_type_ids[i] >= spec.type_vocab_size)) {
      fail(QLA_INVALID_INPUT,
           "token type id %d at position %lld of sequence %lld is outside [0, %d); leave token "
           "types out if the model has only one",
           batch.token_type_ids[i], Long{i - first}, Long{s}, spec.type_vocab_size);
    }
  }
}

void check_lengths(const qla_batch& batch, const EncoderSpec& spec) {
  if (batch.num_lengths < 0 || (batch.num_lengths > 0) != (batch.lengths != nullptr)) {
    fail(QLA_INVALID_INPUT, "num_lengths is %d and lengths is %s; give both, or neither",
         batch.num_lengths, batch.lengths ? "set" : "NULL");
  }
  for (int32_t i = 0; i < batch.num_lengths; ++i) {
    check_aligned(batch.lengths[i].values, "values of a length config");
    check_length_config(batch.lengths[i], spec.layers);
  }
  if (!batch.length_index) return;
  if (!batch.lengths) {
    fail(QLA_INVALID_INPUT, "length_index is set, but there are no lengths for it to choose from");
  }
  for (int64_t s = 0; s < batch.num_sequences; ++s) {
    if (batch.length_index[s] < 0 || batch.length_index[s] >= batch.num_lengths) {
      fail(QLA_INVALID_INPUT,
           "length_index of sequence %lld is %d; this call has %d length configs", Long{s},
           batch.length_index[s], batch.num_lengths);
    }
  }
}

}  // namespace

void check_batch(const qla_batch& batch, const EncoderSpec& spec) {
  if (batch.num_sequences < 1) {
    fail(QLA_INVALID_INPUT, "the batch has %lld sequences; it needs at least one",
         Long{batch.num_sequences});
  }
  if (batch.num_sequences > INT_MAX / 2) {
    fail(QLA_INVALID_INPUT, "the batch has %lld sequences; at most %d in one call",
         Long{batch.num_sequences}, INT_MAX / 2);
  }
  check_pointers(batch);
  check_offsets(batch, spec);
  for (int64_t s = 0; s < batch.num_sequences; ++s) check_ids(batch, s, spec);
  check_lengths(batch, spec);
}

void check_outputs(const qla_outputs& outputs) {
  check_aligned(outputs.last_hidden, "last_hidden");
  check_aligned(outputs.logits, "logits");
  check_aligned(outputs.kept_counts, "kept_counts");
  check_aligned(outputs.kept, "kept");
  check_aligned(outputs.hidden_states, "hidden_states");
  check_aligned(outputs.scores, "scores");
  check_aligned(outputs.macs, "macs");
  check_aligned(outputs.stage_seconds, "stage_seconds");
  if (outputs.num_stages < 0 || outputs.num_stages > kMostStages) {
    fail(QLA_INVALID_INPUT,
         "num_stages is %lld; it must be 0 to %lld: set it to QLA_NUM_STAGES, the entries of "
         "stage_seconds",
         Long{outputs.num_stages}, Long{kMostStages});
  }
}

}  // namespace qla
