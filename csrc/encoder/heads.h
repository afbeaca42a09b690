// From restored rows to logits: one head for each task.
#pragma once

#include "encoder/forward_pass.h"

namespace qla {

void run_head(ForwardPass& pass, Member& m);

}  // namespace qla
