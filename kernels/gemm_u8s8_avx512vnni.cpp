// u8 x s8 GEMM; the loops are in gemm_u8s8.h, the instructions in simd/avx512.h.
#include "simd/avx512.h"
//
#include "gemm_u8s8.h"

namespace qla {

void gemm_u8s8_avx512vnni(const GemmArgs& g) { QLA_DISPATCH_EPILOGUE(gemm, g) }

}  // namespace qla
