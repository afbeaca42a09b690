// Rowwise kernels; the arithmetic is in rowwise.h.
#include "simd/avx2.h"
//
#include "rowwise.h"

namespace qla {

void embed_norm_avx2(const EmbedRow* rows, int count, const NormArgs& norm, int n) {
  layer_norm(rows, count, norm, n);
}

void residual_norm_avx2(const NormRow* rows, int count, const NormArgs& norm, int n) {
  layer_norm(rows, count, norm, n);
}

void quantize_avx2(const float* const* rows, int count, int n, const float* gelu_max,
                   const QuantizeArgs& how, uint8_t* q, float* scale, float* zero_point) {
  quantize(rows, count, n, gelu_max, how, q, scale, zero_point);
}

float dot_avx2(const float* a, const float* b, int n) { return dot(a, b, n); }

}  // namespace qla
