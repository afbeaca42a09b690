// The two integer products of attention on dot-product instructions (VNNI, or AVX2's stand-in).
#pragma once

#include "attention.h"

namespace qla {
namespace {

class DotProducts {
 public:
  DotProducts(const AttentionArgs& args, const AttentionScratch& scratch) : a_(args), w_(scratch) {}

  void scores(int rows, float* peak) const {
    const int blocks = (a_.n + 15) / 16;
    const auto* queries = activations(w_.queries, kRowBytes);
    for (int r = 0; r < rows; r += kScoreQueries) {
      f32x16 biggest[kScoreQueries];
      for (f32x16& x : biggest) x = set1(kNoScore);
      int j = 0;
      for (; j + kScorePanels <= blocks; j += kScorePanels)
        score_block<kScorePanels>(queries, r, j, biggest);
      for (; j < blocks; ++j) score_block<1>(queries, r, j, biggest);
      for (int q = 0; q < kScoreQueries; ++q) peak[r + q] = reduce_max(biggest[q]);
    }
  }

  void values(int q0, int rows, const float* inverse) const {
    const auto* weights = activations(w_.weights, w_.ld);
    for (int r = 0; r < rows; r += kValueQueries) {
      for (int d = 0; d < a_.head_dim; d += 16 * kValuePanels) {
        value_block(weights, q0, r, d, rows, inverse);
      }
    }
  }

 private:
  using Activation = ByteDots::Activation;

  // The 16 rows of a block, ld apart, as ByteDots reads them.
  const Activation* activations(const uint8_t* rows, int ld) const {
    return ByteDots::activations(rows, kQueries * ld, w_.widened);
  }

  // Queries r.., key blocks j..; 16 keys each.
  template <int kPanels>
  QLA_BLOCK_FUNCTION void score_block(const Activation* queries, int r, int j,
                                      f32x16 (&biggest)[kScoreQueries]) const {
    constexpr int kBlockBytes = 16 * kRowBytes;
    Dot16 sum[kScoreQueries][kPanels];
    for (int p = 0; p < kPanels; ++p) {
      const i32x16 offset = load(w_.key_offset + 16 * (j + p));
      for (int q = 0; q < kScoreQueries; ++q) sum[q][p] = dot_from(offset);
    }
    const int8_t* keys = w_.keys + static_cast<size_t>(j) * kBlockBytes;
    const Activation* query = queries + r * kRowBytes;
#pragma GCC unroll 2
    for (int quad = 0; quad < a_.head_dim / 4; ++quad) {
      Columns key[kPanels];
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) {
        key[p] = load_columns(keys + p * kBlockBytes + quad * 64);
      }
#pragma GCC unroll 4
      for (int q = 0; q < kScoreQueries; ++q) {
        const Quad x = ByteDots::quad(query + q * kRowBytes + quad * 4);
#pragma GCC unroll 4
        for (int p = 0; p < kPanels; ++p) accumulate(sum[q][p], x, key[p]);
      }
    }
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      const KeyTerms keys16(w_, 16 * (j + p));
#pragma GCC unroll 4
      for (int q = 0; q < kScoreQueries; ++q) {
        keys16.scale(w_, r + q, total(sum[q][p]), biggest[q]);
      }
    }
  }

  QLA_BLOCK_FUNCTION void value_block(const Activation* all_weights, int q0, int r, int d, int rows,
                                      const float* inverse) const {
    Dot16 sum[kValueQueries][kValuePanels];
    for (int q = 0; q < kValueQueries; ++q) {
      for (int p = 0; p < kValuePanels; ++p) sum[q][p] = dot_from(set1(0));
    }
    const Activation* weights = all_weights + static_cast<size_t>(r) * w_.ld;
    for (int t = 0; t < a_.n; t += 64) {
      const int8_t* block = w_.values + static_cast<size_t>(t) * a_.head_dim + d / 16 * 1024;
      const int quads = a_.n - t < 64 ? (a_.n - t + 3) / 4 : 16;
#pragma GCC unroll 2
      for (int quad = 0; quad < quads; ++quad) {
        Columns value[kValuePanels];
#pragma GCC unroll 2
        for (int p = 0; p < kValuePanels; ++p)
          value[p] = load_columns(block + p * 1024 + quad * 64);
#pragma GCC unroll 8
        for (int q = 0; q < kValueQueries; ++q) {
          const Quad x = ByteDots::quad(weights + static_cast<size_t>(q) * w_.ld + t + quad * 4);
#pragma GCC unroll 2
          for (int p = 0; p < kValuePanels; ++p) accumulate(sum[q][p], x, value[p]);
        }
      }
    }
#pragma GCC unroll 8
    for (int q = 0; q < kValueQueries; ++q) {
      if (r + q >= rows) return;
      float* out = a_.out + static_cast<size_t>(q0 + r + q) * a_.ld_out;
#pragma GCC unroll 2
      for (int p = 0; p < kValuePanels; ++p) {
        const int column = d + 16 * p;
        store(out + column, scale_output(w_, total(sum[q][p]), column, inverse[r + q]));
      }
    }
  }

  const AttentionArgs& a_;
  const AttentionScratch& w_;
};

}  // namespace
}  // namespace qla
