// The forward pass of one chunk of a ragged batch, as one parallel region.
//
//   rows of all sequences:  embed + LayerNorm, quantize, QKV GEMM             row_pipeline.h
//   per layer
//     (sequence, head):     attention, column sums                           attention.h
//     sequence:             top-k, dropped rows to the restore buffer        selection.h
//                           (only where tokens drop)
//     rows that are left:   out-projection, residual + LayerNorm, FFN,       row_pipeline.h
//                           residual + LayerNorm, and the next layer's QKV GEMM
//   sequences:              head, on restored rows                           heads.h
//
// Between the lines stand barriers; inside a line, blocks of work are handed out by a counter.
// Whoever takes a block, its result has the same bits. Dropped tokens cost nothing after their
// attention: the out-projection already runs on kept rows only.
#pragma once

#include "encoder/block_program.h"
#include "encoder/chunk.h"
#include "kernels.h"
#include "package/package.h"
#include "teams.h"
#include "workspace.h"

namespace qla {

class Encoder {
 public:
  // Chooses the block program that the package calls for.
  Encoder(const Package& package, const KernelSet& kernels, Isa isa);

  // Throws std::bad_alloc when the workspace cannot grow, before any work has started, and
  // qla::Error(QLA_STOPPED) when the caller wants no more.
  void run(Team& team, Workspace& workspace, const Chunk& chunk) const;

 private:
  const Package& package_;
  const KernelSet kernels_;
  const Isa isa_;
  const BlockProgram& program_;
};

}  // namespace qla
