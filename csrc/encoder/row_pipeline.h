// A layer outside its attention, as rows pass through it: products, and between them the steps of
// the package's block program. By rows or by columns, as work_split.h has it.
#pragma once

#include "encoder/forward_pass.h"

namespace qla {

// From token ids to Q, K and V of layer 0.
void enter_encoder(ForwardPass& pass, Member& m);

// The rest of a layer, for the rows that it keeps, and Q, K and V of the next one.
void finish_layer(ForwardPass& pass, int layer, Member& m);

}  // namespace qla
