// The bf16 products of attention on machines without AMX, by the rule of TDPBF16PS:
// per output and per block of 32 k, two chains e and o over even and odd k, both starting at +0,
// fused multiply-add in ascending order; then c = c + (e + o). docs/numerics.md has the details.
//
// Operands are bf16 values held as fp32, K transposed so that 16 keys are one vector.
#pragma once

#include "attention.h"

namespace qla {
namespace {

class FmaProducts {
 public:
  FmaProducts(const AttentionArgs& args, const AttentionScratch& scratch) : a_(args), w_(scratch) {
    const size_t plane = static_cast<size_t>(w_.ld) * a_.head_dim;
    keys_ = static_cast<float*>(w_.products);
    values_ = keys_ + plane;
    query_ = values_ + plane;
    pack();
  }

  static size_t scratch_floats(int n, int head_dim) {
    return 2 * static_cast<size_t>(round_up(n, 32)) * head_dim + kQueries * head_dim;
  }

  // S[16][ld] for queries q0 .. q0+rows; rows beyond hold nonsense nobody reads.
  void scores(int q0, int rows) {
    unpack(a_.q + static_cast<size_t>(q0) * a_.head_dim, rows * a_.head_dim, query_);
    const int vectors = (a_.n + 15) / 16;
    for (int r = 0; r < rows; r += kQueryBlock) {
      int j = 0;
      for (; j + kKeyVectors <= vectors; j += kKeyVectors) score_block<kKeyVectors>(r, 16 * j);
      for (; j < vectors; ++j) score_block<1>(r, 16 * j);
    }
  }

  // out = (bf16(E) V) * inverse for `rows` queries.
  void values(int q0, int rows, const float* inverse) {
    for (int r = 0; r < rows; ++r) {
      float* e = w_.s + static_cast<size_t>(r) * w_.ld;
      for (int j = 0; j < w_.ld; j += 16) store(e + j, round_bf16(load(e + j)));
    }
    int r = 0;
    for (; r + kValueQueries <= rows; r += kValueQueries) value_rows<kValueQueries>(q0, r, inverse);
    for (; r < rows; ++r) value_rows<1>(q0, r, inverse);
  }

 private:
  static void unpack(const uint16_t* from, int count, float* to) {
    for (int i = 0; i < count; i += 16) store(to + i, load_bf16(from + i));
  }

  void pack() {
    const int hd = a_.head_dim;
    unpack(a_.v, a_.n * hd, values_);
    for (int i = a_.n * hd; i < w_.ld * hd; i += 16) store(values_ + i, zero());
    // Keys go through a 16-row strip so that the transposition reads and writes short strides.
    float strip[16 * 64];
    for (int j0 = 0; j0 < a_.n; j0 += 16) {
      const int rows = a_.n - j0 < 16 ? a_.n - j0 : 16;
      unpack(a_.k + static_cast<size_t>(j0) * hd, rows * hd, strip);
      for (int i = rows * hd; i < 16 * hd; i += 16) store(strip + i, zero());
      for (int d = 0; d < hd; ++d) {
        float* to = keys_ + static_cast<size_t>(d) * w_.ld + j0;
        for (int l = 0; l < 16; ++l) to[l] = strip[l * hd + d];
      }
    }
  }

  template <int kVectors>
  void score_block(int r, int j) {
    constexpr int kQ = kQueryBlock;
    f32x16 c[kQ][kVectors];
    for (int d0 = 0; d0 < a_.head_dim; d0 += 32) {
      f32x16 e[kQ][kVectors], o[kQ][kVectors];
      for (int q = 0; q < kQ; ++q) {
        for (int v = 0; v < kVectors; ++v) e[q][v] = o[q][v] = zero();
      }
#pragma GCC unroll 1
      for (int d = d0; d < d0 + 32; d += 2) {
        const float* even = keys_ + static_cast<size_t>(d) * w_.ld + j;
        const float* odd = even + w_.ld;
        const float* query = query_ + r * a_.head_dim + d;
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const f32x16 ke = load(even + 16 * v), ko = load(odd + 16 * v);
#pragma GCC unroll 4
          for (int q = 0; q < kQ; ++q) {
            e[q][v] = fma(set1(query[q * a_.head_dim]), ke, e[q][v]);
            o[q][v] = fma(set1(query[q * a_.head_dim + 1]), ko, o[q][v]);
          }
        }
      }
      for (int q = 0; q < kQ; ++q) {
        for (int v = 0; v < kVectors; ++v) {
          const f32x16 sum = e[q][v] + o[q][v];
          c[q][v] = d0 == 0 ? zero() + sum : c[q][v] + sum;
        }
      }
    }
    for (int q = 0; q < kQ; ++q) {
      for (int v = 0; v < kVectors; ++v) {
        store(w_.s + static_cast<size_t>(r + q) * w_.ld + j + 16 * v, c[q][v]);
      }
    }
  }

  template <int kQ>
  void value_rows(int q0, int r, const float* inverse) {
    for (int d = 0; d < a_.head_dim; d += 16 * kValueVectors) value_block<kQ>(q0, r, d, inverse);
  }

  template <int kQ>
  void value_block(int q0, int r, int d, const float* inverse) {
    constexpr int kV = kValueVectors;
    const int hd = a_.head_dim;
    f32x16 c[kQ][kV];
    for (int q = 0; q < kQ; ++q) {
      for (int v = 0; v < kV; ++v) c[q][v] = zero();
    }
    for (int j0 = 0; j0 < w_.ld; j0 += 32) {
      f32x16 e[kQ][kV], o[kQ][kV];
      for (int q = 0; q < kQ; ++q) {
        for (int v = 0; v < kV; ++v) e[q][v] = o[q][v] = zero();
      }
#pragma GCC unroll 1
      for (int j = j0; j < j0 + 32; j += 2) {
        const float* even = values_ + static_cast<size_t>(j) * hd + d;
        const float* odd = even + hd;
        const float* weight = w_.s + static_cast<size_t>(r) * w_.ld + j;
#pragma GCC unroll 4
        for (int v = 0; v < kV; ++v) {
          const f32x16 ve = load(even + 16 * v), vo = load(odd + 16 * v);
#pragma GCC unroll 4
          for (int q = 0; q < kQ; ++q) {
            e[q][v] = fma(set1(weight[q * w_.ld]), ve, e[q][v]);
            o[q][v] = fma(set1(weight[q * w_.ld + 1]), vo, o[q][v]);
          }
        }
      }
      for (int q = 0; q < kQ; ++q) {
        for (int v = 0; v < kV; ++v) c[q][v] = c[q][v] + (e[q][v] + o[q][v]);
      }
    }
    for (int q = 0; q < kQ; ++q) {
      for (int v = 0; v < kV; ++v) {
        float* to = a_.out + static_cast<size_t>(q0 + r + q) * a_.ld_out + d + 16 * v;
        store(to, c[q][v] * set1(inverse[r + q]));
      }
    }
  }

  const AttentionArgs& a_;
  const AttentionScratch& w_;
  float* keys_;    // (head_dim, ld)
  float* values_;  // (ld, head_dim), rows beyond n are zero
  float* query_;   // (16, head_dim)
};

}  // namespace
}  // namespace qla
