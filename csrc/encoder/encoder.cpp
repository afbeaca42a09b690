#include "encoder/encoder.h"

#include "encoder/attention.h"
#include "encoder/forward_pass.h"
#include "encoder/heads.h"
#include "encoder/reports.h"
#include "encoder/row_pipeline.h"
#include "encoder/selection.h"
#include "float_mode.h"

namespace qla {
namespace {

// One member's way through a pass.
void run_layers(ForwardPass& pass, Member& m) {
  enter_encoder(pass, m);
  for (int layer = 0; layer < pass.spec.layers; ++layer) {
    pass.loops.wait(m);
    attend(pass, layer, m);
    pass.loops.wait(m);
    if (pass.selects(layer)) {
      select_tokens(pass, layer, m);
      pass.loops.wait(m);
    }
    finish_layer(pass, layer, m);
  }
  pass.loops.wait(m);
  run_head(pass, m);
  m.clock.lap(QLA_STAGE_HEAD);
}

}  // namespace

Encoder::Encoder(const Package& package, const KernelSet& kernels, Isa isa)
    : package_(package), kernels_(kernels), isa_(isa), program_(block_program(package.encoder)) {}

void Encoder::run(Team& team, Workspace& workspace, const Chunk& chunk) const {
  ForwardPass pass(package_, kernels_, isa_, program_, team, workspace, chunk);
  team.run([&](int index) {
    const FloatMode mode;
    begin_tiles(isa_);
    Member m{index, StageClock(index == 0 ? chunk.out.stage_seconds : nullptr)};
    run_layers(pass, m);
    end_tiles(isa_);
  });
  if (pass.loops.stopped()) StopRequest::stopped();
  report(pass);
}

}  // namespace qla
