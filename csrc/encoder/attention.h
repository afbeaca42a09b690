// Attention of every head of every sequence, and the column sums that selection needs.
#pragma once

#include "encoder/forward_pass.h"

namespace qla {

// From Q, K and V of all rows that enter a layer to their context.
void attend(ForwardPass& pass, int layer, Member& m);

}  // namespace qla
