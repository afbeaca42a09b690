// The two polynomials of the kernels' headers as plain functions, one of each per instruction set.
#pragma once

namespace qla {

// n is a multiple of 16; x and y are n floats.
using Polynomial = void(const float* x, int n, float* y);

Polynomial gelu_ref, gelu_avx2, gelu_avxvnni, gelu_avx512vnni;
Polynomial exponential_ref, exponential_avx2, exponential_avxvnni, exponential_avx512vnni;

}  // namespace qla
