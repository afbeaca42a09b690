// What callers may want to know beside logits and the last hidden states: which tokens were kept,
// at what cost, and every layer's hidden states. Scores are selection's to report.
#pragma once

#include "encoder/forward_pass.h"

namespace qla {

// During a pass: the states of some rows that enter a layer.
void report_states(const ForwardPass& pass, int layer, Rows in_hand);

// After it, on the calling thread: the rest.
void report(const ForwardPass& pass);

}  // namespace qla
