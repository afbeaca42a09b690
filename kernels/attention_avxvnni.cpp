// Attention on integer dot products; the loops are in attention_dot.h, the instructions in
// simd/avxvnni_dot.h.
#include "simd/avxvnni_dot.h"
//
#include "attention_dot.h"

namespace qla {

void attention_avxvnni(const AttentionArgs& a) { attention<DotProducts>(a); }

}  // namespace qla
