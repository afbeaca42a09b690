// Attention on integer dot products; the loops are in attention_dot.h, the instructions in
// simd/ref.h.
#include "simd/ref.h"
//
#include "attention_dot.h"

namespace qla {

void attention_ref(const AttentionArgs& a) { attention<DotProducts>(a); }

}  // namespace qla
