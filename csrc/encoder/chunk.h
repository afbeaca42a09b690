// What one forward pass is given.
#pragma once

#include <cstdint>

#include "qla/qla.h"
#include "stop.h"

namespace qla {

// A run of neighbouring sequences of a batch, and where their results go. Pointers in `out` are
// already those of the first sequence; strides are the whole batch's.
struct Chunk {
  const int32_t* ids;
  const int32_t* types;     // or null
  const int32_t* tokens;    // (num_sequences, layers + 1) from count_tokens
  const uint8_t* keep_cls;  // (num_sequences)
  int num_sequences;
  qla_outputs out;
  int64_t total_tokens;  // T and S of the whole batch
  int64_t total_sequences;
  const StopRequest* stop;
};

}  // namespace qla
