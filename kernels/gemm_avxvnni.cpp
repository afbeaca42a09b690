// The GEMM; the loops are in gemm_dot.h, the instructions in simd/avxvnni_dot.h.
#include "simd/avxvnni_dot.h"
//
#include "gemm_dot.h"

namespace qla {

QLA_DEFINE_GEMM(gemm_u8s8_avxvnni, W8A8)
QLA_DEFINE_GEMM(gemm_u8s2_avxvnni, W2A8)

}  // namespace qla
