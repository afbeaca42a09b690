// The GEMM; the loops are in gemm_dot.h, the instructions in simd/avx512.h.
#include "simd/avx512.h"
//
#include "gemm_dot.h"

namespace qla {

QLA_DEFINE_GEMM(gemm_u8s8_avx512vnni, W8A8)
QLA_DEFINE_GEMM(gemm_u8s2_avx512vnni, W2A8)

}  // namespace qla
