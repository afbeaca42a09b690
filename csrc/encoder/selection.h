// Which rows go on: scores, the top k of each sequence, and what is known of the rows they leave.
#pragma once

#include "encoder/forward_pass.h"

namespace qla {

// Where pass.selects(layer): finds the sources and origins of the rows that a layer keeps, puts
// the others where they rest in restored(), and reports scores that somebody wants.
void select_tokens(ForwardPass& pass, int layer, Member& m);

// The row in which a row that a layer keeps entered it.
inline int source_row(const ForwardPass& pass, int layer, int r) {
  return pass.selects(layer) ? pass.buffers.sources()[r] : r;
}

// Notes for rows that a layer has kept: their origins, with or without a selection, for the next
// layer and for reports.
void note_kept(ForwardPass& pass, int layer, Rows in_hand);

}  // namespace qla
