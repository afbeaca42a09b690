// Attention by fused multiply-adds on bf16 values; the arithmetic is in attention_fma.h.
#include "simd/avx2.h"
//
#include "attention_fma.h"

namespace qla {

void attention_avx2(const AttentionArgs& a) { attention<FmaProducts>(a); }

}  // namespace qla
