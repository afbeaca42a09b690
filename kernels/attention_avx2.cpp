// Attention on integer dot products; the loops are in attention_dot.h, the instructions in
// simd/avx2_dot.h.
#include "simd/avx2_dot.h"
//
#include "attention_dot.h"

namespace qla {

void attention_avx2(const AttentionArgs& a) { attention<DotProducts>(a); }

}  // namespace qla
