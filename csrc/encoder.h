// The forward pass of one chunk of a ragged batch, as one parallel region.
//
//   rows of all sequences:  embed + LayerNorm, quantize, QKV GEMM
//   per layer
//     (sequence, head):     attention, column sums
//     sequence:             top-k, dropped rows to the restore buffer      (only where tokens drop)
//     rows that are left:   out-projection, residual + LayerNorm, FFN, residual + LayerNorm,
//                           and the next layer's QKV GEMM
//   sequences:              head, on restored rows
//
// Between the lines stand barriers; inside a line, blocks of work are handed out by a counter.
// Whoever takes a block, its result has the same bits. Dropped tokens cost nothing after their
// attention: the out-projection already runs on kept rows only.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "package.h"
#include "stop.h"
#include "teams.h"
#include "workspace.h"

namespace qla {

// A run of neighbouring sequences of a batch, and where their results go. Pointers in `out` are
// already those of the first sequence; strides are the whole batch's.
struct Chunk {
  const int32_t* ids;
  const int32_t* types;     // or null
  const int32_t* tokens;    // (num_sequences, layers + 1) from plan_lengths
  const uint8_t* keep_cls;  // (num_sequences)
  int num_sequences;
  qla_outputs out;
  int64_t total_tokens;  // T and S of the whole batch
  int64_t total_sequences;
  const StopRequest* stop;
};

class Encoder {
 public:
  Encoder(const Package& package, const KernelSet& kernels, Isa isa);

  // Throws std::bad_alloc when the workspace cannot grow, before any work has started, and
  // qla::Error(QLA_STOPPED) when the caller wants no more.
  void run(Team& team, Workspace& workspace, const Chunk& chunk) const;

 private:
  const Package& package_;
  const KernelSet kernels_;
  const Isa isa_;
};

}  // namespace qla
