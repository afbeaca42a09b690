// Structs that come through the C door, of this header or an older one.
#pragma once

#include <cstddef>
#include <cstring>
#include <initializer_list>

#include "error.h"
#include "qla/qla.h"

namespace qla {

template <typename T>
T* require(T* pointer, const char* name) {
  if (!pointer) fail(QLA_INVALID_INPUT, "%s is NULL", name);
  return pointer;
}

// Where the fields of each struct end: the sizes that a caller's header can have given it.
//
// A new field that callers fill in must not begin in the padding behind the last one: an older
// caller's size covers that padding, so whatever lies there would be read as the field.
#define QLA_END(type, field) (offsetof(type, field) + sizeof(type::field))
inline std::initializer_list<size_t> field_ends(const qla_options*) {
  static constexpr std::initializer_list<size_t> kEnds = {
      QLA_END(qla_options, struct_size), QLA_END(qla_options, num_threads),
      QLA_END(qla_options, streams),     QLA_END(qla_options, isa),
      QLA_END(qla_options, stop),        QLA_END(qla_options, stop_user),
      QLA_END(qla_options, weights)};
  return kEnds;
}
inline std::initializer_list<size_t> field_ends(const qla_model_info*) {
  static constexpr std::initializer_list<size_t> kEnds = {
      QLA_END(qla_model_info, struct_size),
      QLA_END(qla_model_info, layers),
      QLA_END(qla_model_info, hidden),
      QLA_END(qla_model_info, heads),
      QLA_END(qla_model_info, intermediate),
      QLA_END(qla_model_info, vocab_size),
      QLA_END(qla_model_info, max_positions),
      QLA_END(qla_model_info, type_vocab_size),
      QLA_END(qla_model_info, task),
      QLA_END(qla_model_info, outputs),
      QLA_END(qla_model_info, num_threads),
      QLA_END(qla_model_info, streams),
      QLA_END(qla_model_info, logits_per_token)};
  return kEnds;
}
inline std::initializer_list<size_t> field_ends(const qla_config_info*) {
  static constexpr std::initializer_list<size_t> kEnds = {
      QLA_END(qla_config_info, struct_size), QLA_END(qla_config_info, name),
      QLA_END(qla_config_info, length),      QLA_END(qla_config_info, in_frontier),
      QLA_END(qla_config_info, macs),        QLA_END(qla_config_info, macs_share),
      QLA_END(qla_config_info, metric),      QLA_END(qla_config_info, accuracy),
      QLA_END(qla_config_info, data)};
  return kEnds;
}
inline std::initializer_list<size_t> field_ends(const qla_batch*) {
  static constexpr std::initializer_list<size_t> kEnds = {
      QLA_END(qla_batch, struct_size),    QLA_END(qla_batch, input_ids),
      QLA_END(qla_batch, token_type_ids), QLA_END(qla_batch, offsets),
      QLA_END(qla_batch, num_sequences),  QLA_END(qla_batch, lengths),
      QLA_END(qla_batch, num_lengths),    QLA_END(qla_batch, length_index),
      QLA_END(qla_batch, stop),           QLA_END(qla_batch, stop_user)};
  return kEnds;
}
inline std::initializer_list<size_t> field_ends(const qla_outputs*) {
  static constexpr std::initializer_list<size_t> kEnds = {
      QLA_END(qla_outputs, struct_size),   QLA_END(qla_outputs, last_hidden),
      QLA_END(qla_outputs, logits),        QLA_END(qla_outputs, kept_counts),
      QLA_END(qla_outputs, kept),          QLA_END(qla_outputs, hidden_states),
      QLA_END(qla_outputs, scores),        QLA_END(qla_outputs, macs),
      QLA_END(qla_outputs, stage_seconds), QLA_END(qla_outputs, num_stages)};
  return kEnds;
}
inline std::initializer_list<size_t> field_ends(const qla_span_search*) {
  static constexpr std::initializer_list<size_t> kEnds = {
      QLA_END(qla_span_search, struct_size), QLA_END(qla_span_search, start_logits),
      QLA_END(qla_span_search, end_logits),  QLA_END(qla_span_search, logit_stride),
      QLA_END(qla_span_search, is_context),  QLA_END(qla_span_search, offsets),
      QLA_END(qla_span_search, questions),   QLA_END(qla_span_search, num_questions),
      QLA_END(qla_span_search, positions),   QLA_END(qla_span_search, max_tokens),
      QLA_END(qla_span_search, top_k),       QLA_END(qla_span_search, score)};
  return kEnds;
}
inline std::initializer_list<size_t> field_ends(const qla_spans*) {
  static constexpr std::initializer_list<size_t> kEnds = {
      QLA_END(qla_spans, struct_size), QLA_END(qla_spans, counts), QLA_END(qla_spans, window),
      QLA_END(qla_spans, first),       QLA_END(qla_spans, last),   QLA_END(qla_spans, score),
      QLA_END(qla_spans, null_score)};
  return kEnds;
}
#undef QLA_END

// The size that the caller gives its struct, which is one that a header has or may have had.
template <typename T>
size_t checked_size(const T* from, const char* name) {
  require(from, name);
  const size_t size = from->struct_size;
  for (const size_t end : field_ends(from)) {
    // A header that ended with a 32-bit field has padding behind it.
    const size_t padded = (end + alignof(T) - 1) / alignof(T) * alignof(T);
    if (size == end || size == padded) return size;
  }
  fail(QLA_INVALID_INPUT,
       "%s.struct_size is %zu, which %s; set it to sizeof(%s) of the qla.h that belongs to this "
       "library (%zu)",
       name, size, size > sizeof(T) ? "is more than this library knows" : "ends inside a field",
       name, sizeof(T));
}

// A caller compiled against an older header passes a shorter struct: what it lacks is zero.
template <typename T>
T read_struct(const T* from, const char* name) {
  T copy{};
  memcpy(static_cast<void*>(&copy), from, checked_size(from, name));
  return copy;
}

// Fills as much of the caller's struct as its header has; struct_size stays.
template <typename T>
void write_struct(T filled, T* to, const char* name) {
  const size_t size = checked_size(to, name);
  filled.struct_size = size;
  memcpy(static_cast<void*>(to), &filled, size);
}

}  // namespace qla
