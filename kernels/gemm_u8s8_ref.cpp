// u8 x s8 GEMM in plain C++: the definition the other four are tested against.
#include "simd/ref.h"
//
#include "gemm_epilogue.h"

namespace qla {
namespace {

int8_t weight_at(const GemmArgs& g, int k, int n) {
  return weights_of(g, n)[k / 4 * kQuadBytes + k % 4];
}

template <Epilogue kEpilogue>
void gemm(const GemmArgs& g) {
  for (int row = 0; row < g.rows; ++row) {
    for (int col = g.first_col; col < g.last_col; col += 16) {
      i32x16 acc = set1(0);
      for (int k = 0; k < g.k; ++k) {
        const int32_t a = g.a[static_cast<size_t>(row) * g.lda + k];
        for (int l = 0; l < 16; ++l) acc.v[l] += a * weight_at(g, k, col + l);
      }
      Largest largest;
      finish_columns<kEpilogue>(g, ColumnTerms(g, col), acc, row, col, largest);
      largest.merge<kEpilogue>(g, row, col);
    }
  }
}

}  // namespace

void gemm_u8s8_ref(const GemmArgs& g) { QLA_DISPATCH_EPILOGUE(gemm, g) }

}  // namespace qla
