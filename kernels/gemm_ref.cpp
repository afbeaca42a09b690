// The GEMM in plain C++: the definition the others are tested against.
#include "simd/ref.h"
//
#include "gemm_epilogue.h"
#include "weight_format_w2a8.h"
#include "weight_format_w8a8.h"

namespace qla {
namespace {

template <typename Format, typename Out>
void gemm(const GemmArgs& g, const Out& out) {
  for (int row = 0; row < g.rows; ++row) {
    for (int col = g.first_col; col < g.last_col; col += 16) {
      i32x16 acc = set1(0);
      for (int k = 0; k < g.k; ++k) {
        const int32_t a = g.a[static_cast<size_t>(row) * g.lda + k];
        for (int l = 0; l < 16; ++l) acc.v[l] += a * Format::at(g.b, g.k, k, col + l);
      }
      Largest largest;
      finish_columns(out, dequantize(g, ColumnTerms(g, col), acc, row), row, col, largest);
      finish_row(out, largest, row, col == g.first_col);
    }
  }
}

}  // namespace

QLA_DEFINE_GEMM(gemm_u8s8_ref, W8A8)
QLA_DEFINE_GEMM(gemm_u8s2_ref, W2A8)

}  // namespace qla
