// Compiled once per instruction set, with the flags of its kernels: QLA_ISA is its name, QLA_SIMD
// the header of its lanes.
#include "polynomials.h"

#include QLA_SIMD
//
#include "attention.h"
#include "gemm_epilogue.h"

#define QLA_JOIN(a, b) a##b
#define QLA_NAME(a, b) QLA_JOIN(a, b)

namespace qla {

void QLA_NAME(gelu_, QLA_ISA)(const float* x, int n, float* y) {
  for (int i = 0; i < n; i += 16) store(y + i, gelu(load(x + i)));
}

void QLA_NAME(exponential_, QLA_ISA)(const float* t, int n, float* y) {
  for (int i = 0; i < n; i += 16) store(y + i, weights_from_exponents(load(t + i)));
}

}  // namespace qla
