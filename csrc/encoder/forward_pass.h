// What the members of a team share during one pass over a chunk.
#pragma once

#include "encoder/buffers.h"
#include "encoder/chunk.h"
#include "encoder/ragged_shape.h"
#include "encoder/shared_loops.h"
#include "encoder/work_split.h"
#include "kernels.h"
#include "package/package.h"
#include "teams.h"
#include "workspace.h"

namespace qla {

struct BlockProgram;

struct ForwardPass {
  // Throws std::bad_alloc. Nothing is allocated later.
  ForwardPass(const Package& opened, const KernelSet& kernel_set, Isa isa,
              const BlockProgram& block_program, Team& team, Workspace& workspace,
              const Chunk& given)
      : package(opened),
        spec(opened.encoder),
        kernels(kernel_set),
        program(block_program),
        chunk(given),
        shape(given.tokens, given.num_sequences, spec.layers),
        split(opened.weights.most_layer_bytes(), isa, team.size()),
        buffers(opened, shape, split, team.size(), given.out.last_hidden, workspace),
        loops(team, *given.stop, kLoopsPerLayer * spec.layers + kOtherLoops) {}

  const Layer& weights(int layer) const {
    return package.weights.layers[static_cast<size_t>(layer)];
  }
  NormArgs norm_args(const Norm& norm) const { return {norm.weight, norm.bias, spec.norm_eps}; }

  // Whether a layer has a selection: some sequence drops tokens, or somebody wants all scores.
  bool selects(int layer) const { return chunk.out.scores || shape.drops(layer); }

  const Package& package;
  const EncoderSpec& spec;
  const KernelSet& kernels;
  const BlockProgram& program;
  const Chunk& chunk;
  const RaggedShape shape;
  const WorkSplit split;
  Buffers buffers;
  SharedLoops loops;

 private:
  // The most that any member meets: a layer by columns (attention, selection, and eight in
  // row_pipeline.cpp); embeddings and the first Q, K, V by columns, and the head.
  static constexpr int kLoopsPerLayer = 10, kOtherLoops = 3;
};

}  // namespace qla
