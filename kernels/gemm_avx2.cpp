// The GEMM; the loops are in gemm_dot.h, the instructions in simd/avx2_dot.h.
#include "simd/avx2_dot.h"
//
#include "gemm_dot.h"

namespace qla {

QLA_DEFINE_GEMM(gemm_u8s8_avx2, W8A8)
QLA_DEFINE_GEMM(gemm_u8s2_avx2, W2A8)

}  // namespace qla
