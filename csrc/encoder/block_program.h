// What a kind of transformer block does to rows between its products: where residuals are added
// and LayerNorms stand. A kind is one table in one file; row_pipeline.cpp runs it.
#pragma once

#include "encoder/buffers.h"
#include "package/spec.h"

namespace qla {

struct ForwardPass;

// Each step takes rows in hand whose scratch is `t`, and runs on one thread. "Quantizes" means that
// it leaves the u8 input of the linear layer that comes next in t.a, t.scale and t.zero.
struct BlockProgram {
  using Step = void (*)(ForwardPass& pass, int layer, Rows in_hand, RowScratch& t);

  Step embed;               // token ids to the states that enter layer 0
  Step enter_attention;     // those states; quantizes for Q, K, V
  Step leave_attention;     // what attention gave the rows that are kept; quantizes for `output`
  Step enter_feed_forward;  // what `output` left in t.c; quantizes for `ffn_in`
  Step leave_feed_forward;  // what `ffn_out` left in t.c, to the states that enter the next layer
};

extern const BlockProgram kPostNorm;  // post_norm.cpp

// The program of a package's blocks. Chosen once, when it is opened.
inline const BlockProgram& block_program(const EncoderSpec& spec) {
  switch (spec.norm) {
    case NormPlacement::kPost:
      break;
  }
  return kPostNorm;
}

}  // namespace qla
