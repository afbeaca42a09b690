// Rowwise kernels; the arithmetic is in rowwise.h.
#include "simd/avx512.h"
//
#include "rowwise.h"

namespace qla {

void embed_norm_avx512(const int8_t* word, float word_scale, const float* position,
                       const float* token_type, const NormArgs& norm, int n, float* out) {
  embed_norm(word, word_scale, position, token_type, norm, n, out);
}

void residual_norm_avx512(const float* x, const float* residual, const NormArgs& norm, int n,
                          float* out) {
  residual_norm(x, residual, norm, n, out);
}

void quantize_avx512(const float* x, int n, const float* gelu_max, const QuantizeArgs& how,
                     uint8_t* q, float* scale, float* zero_point) {
  quantize(x, n, gelu_max, how, q, scale, zero_point);
}

float dot_avx512(const float* a, const float* b, int n) { return dot(a, b, n); }

}  // namespace qla
