#include "encoder/heads.h"

#include <algorithm>
#include <cmath>

#include "portable_exp.h"

namespace qla {
namespace {

// A linear layer in fp32: `outputs` rows of weights.
void project(const ForwardPass& pass, const float* x, const float* weight, const float* bias,
             int outputs, float* out) {
  for (int j = 0; j < outputs; ++j) {
    out[j] = pass.kernels.dot(x, weight + pass.buffers.row(j), pass.spec.hidden) + bias[j];
  }
}

void project_row(const ForwardPass& pass, const float* x, float* out) {
  const Weights& w = pass.package.weights;
  project(pass, x, w.head_weight, w.head_bias, pass.package.task.outputs, out);
}

// `pooled`: room for a row.
void classify(const ForwardPass& pass, const float* cls, float* pooled, float* out) {
  if (!pass.package.task.has_pooler) return project_row(pass, cls, out);
  const Weights& w = pass.package.weights;
  const int hidden = pass.spec.hidden;
  project(pass, cls, w.pooler_weight, w.pooler_bias, hidden, pooled);
  for (int j = 0; j < hidden; ++j) {
    pooled[j] = static_cast<float>(portable_tanh(static_cast<double>(pooled[j])));
  }
  project_row(pass, pooled, out);
}

void pool(const ForwardPass& pass, const float* x, int n, float* out) {
  const TaskSpec& task = pass.package.task;
  const int hidden = pass.spec.hidden;
  pass.buffers.copy_row(x, out);
  if (task.mean_pooling) {
    for (int r = 1; r < n; ++r) {
      const float* from = x + pass.buffers.row(r);
      for (int i = 0; i < hidden; ++i) out[i] += from[i];
    }
    for (int i = 0; i < hidden; ++i) out[i] /= static_cast<float>(n);
  }
  if (task.normalize) {
    const float length = std::sqrt(pass.kernels.dot(out, out, hidden));
    const float divisor = std::max(length, 1e-12f);
    for (int i = 0; i < hidden; ++i) out[i] /= divisor;
  }
}

void run_by_token(ForwardPass& pass, Member& m) {
  const auto outputs = static_cast<size_t>(pass.package.task.outputs);
  const float* states = pass.buffers.restored();
  const Runs blocks = pass.split.row_blocks(pass.shape.rows(0));
  pass.loops.run(m, blocks.count(), [&](int i) {
    const int first = blocks.first(i), end = first + blocks.length(i);
    for (int r = first; r < end; ++r) {
      project_row(pass, states + pass.buffers.row(r), pass.chunk.out.logits + r * outputs);
    }
  });
}

void run_by_sequence(ForwardPass& pass, Member& m) {
  const TaskSpec& task = pass.package.task;
  const auto outputs = static_cast<size_t>(task.outputs);
  const RaggedShape& shape = pass.shape;
  pass.loops.run(m, shape.sequences(), [&](int s) {
    const float* x = pass.buffers.restored() + pass.buffers.row(shape.start(0, s));
    float* out = pass.chunk.out.logits + s * outputs;
    if (task.kind == QLA_TASK_EMBEDDING) {
      pool(pass, x, shape.tokens(0, s), out);
    } else {
      classify(pass, x, pass.buffers.block(m.index).y, out);
    }
  });
}

}  // namespace

void run_head(ForwardPass& pass, Member& m) {
  if (!pass.chunk.out.logits) return;
  if (pass.package.task.logits_per_token()) {
    run_by_token(pass, m);
  } else {
    run_by_sequence(pass, m);
  }
}

}  // namespace qla
