// Attention on integer dot products; the loops are in attention_dot.h, the instructions in
// simd/avx512.h.
#include "simd/avx512.h"
//
#include "attention_dot.h"

namespace qla {

void attention_avx512vnni(const AttentionArgs& a) { attention<DotProducts>(a); }

}  // namespace qla
