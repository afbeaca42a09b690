// The two polynomials of the kernels' headers as plain functions, one of each per instruction set.
#pragma once

namespace qla {

// n is a multiple of 16; x and y are n floats.
using Polynomial = void(const float* x, int n, float* y);

Polynomial gelu_ref, exponential_ref;
Polynomial gelu_avx2, exponential_avx2;
Polynomial gelu_avxvnni, exponential_avxvnni;
Polynomial gelu_avx512vnni, exponential_avx512vnni;
Polynomial gelu_amx, exponential_amx;

}  // namespace qla
