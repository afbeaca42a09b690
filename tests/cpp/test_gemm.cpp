// Every u8 x s8 GEMM of kernels.inc: accumulators exact against a plain triple loop, outputs equal
// to the bit across instruction sets, over ragged row counts.
#include <algorithm>
#include <cmath>

#include "kernel_fixtures.h"

namespace qla {
namespace {

struct Problem {
  int rows, k, n, head_dim;
  std::vector<uint8_t> a;      // (rows padded, k)
  std::vector<int8_t> weight;  // (n, k) plain
  std::vector<int8_t> packed;
  std::vector<float> row_scale, row_zero, col_scale, bias, col_sum;

  Problem(int rows_, int k_, int n_, int head_dim_, unsigned seed, bool extreme)
      : rows(rows_), k(k_), n(n_), head_dim(head_dim_) {
    Random random(seed);
    const size_t padded = static_cast<size_t>((rows + kRowPadding - 1) / kRowPadding * kRowPadding);
    a = random.ints<uint8_t>(padded * k, extreme ? 255 : 0, 255);
    weight = random.ints<int8_t>(static_cast<size_t>(n) * k, extreme ? 127 : -127, 127);
    if (extreme) {
      for (size_t i = 0; i < weight.size(); i += 2 * static_cast<size_t>(k)) {
        for (int j = 0; j < k; ++j) weight[i + j] = -128;
      }
    }
    row_scale = random.floats(rows, 0.02f);
    for (int zero : random.ints<int>(rows, 0, 255)) row_zero.push_back(static_cast<float>(zero));
    col_scale = random.floats(n, 0.01f);
    bias = random.floats(n, 0.5f);
    packed.resize(weight.size());
    col_sum.assign(n, 0.0f);
    for (int c = 0; c < n; ++c) {
      for (int i = 0; i < k; ++i) {
        const int8_t w = weight[static_cast<size_t>(c) * k + i];
        col_sum[c] += w;
        packed[static_cast<size_t>(c / 64) * 64 * k + i / 4 * 256 + c % 64 * 4 + i % 4] = w;
      }
    }
  }

  int32_t exact(int row, int col) const {
    int32_t sum = 0;
    for (int i = 0; i < k; ++i) {
      sum += (a[static_cast<size_t>(row) * k + i] - static_cast<int>(row_zero[row])) *
             weight[static_cast<size_t>(col) * k + i];
    }
    return sum;
  }
  double expected(int row, int col) const {
    return static_cast<double>(exact(row, col)) * row_scale[row] * col_scale[col] + bias[col];
  }
  // Three roundings to fp32 (sum, product of scales, the fused multiply-add); what the sum is made
  // of is below 2^24 for every k here.
  double tolerance(int row, int col) const {
    const double product =
        std::abs(static_cast<double>(exact(row, col)) * row_scale[row] * col_scale[col]);
    return 3 * std::ldexp(product + std::abs(bias[col]), -24);
  }
};

struct Output {
  std::vector<float> c, row_max;
  std::vector<uint16_t> qkv;
};

// All columns in one call, or `share` of them a call.
Output run(const Problem& p, Isa isa, Epilogue epilogue, int share = 0) {
  Output out;
  const size_t cells = static_cast<size_t>(p.rows) * p.n;
  out.c.assign(cells + 16, -7.0f);  // 16 guards
  out.row_max.resize(static_cast<size_t>(p.rows) * 16);
  out.qkv.assign(cells, 0);
  std::vector<uint16_t*> qkv_row;
  std::vector<int64_t> qkv_stride(p.rows, static_cast<int64_t>(p.rows) * p.head_dim);
  for (int r = 0; r < p.rows; ++r) qkv_row.push_back(&out.qkv[static_cast<size_t>(r) * p.head_dim]);
  GemmArgs g{};
  g.a = p.a.data();
  g.lda = p.k;
  g.b = p.packed.data();
  g.rows = p.rows;
  g.k = p.k;
  g.n = p.n;
  g.row_scale = p.row_scale.data();
  g.row_zero = p.row_zero.data();
  g.col_scale = p.col_scale.data();
  g.bias = p.bias.data();
  g.col_sum = p.col_sum.data();
  g.epilogue = epilogue;
  g.c = out.c.data();
  g.ldc = p.n;
  g.qkv_row = qkv_row.data();
  g.qkv_stride = qkv_stride.data();
  g.head_dim = p.head_dim;
  const KernelRegion region(isa);
  const int columns = share ? share : p.n;
  std::vector<float> row_max(out.row_max.size());
  for (g.first_col = 0; g.first_col < p.n; g.first_col = g.last_col) {
    g.last_col = std::min(g.first_col + columns, p.n);
    g.row_max = g.first_col == 0 ? out.row_max.data() : row_max.data();
    select_kernels(isa).gemm_u8s8(g);
    for (size_t i = 0; g.first_col > 0 && i < row_max.size(); ++i) {
      out.row_max[i] = std::max(out.row_max[i], row_max[i]);
    }
  }
  return out;
}

double gelu(double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }

class Gemm : public testing::TestWithParam<int> {};  // rows

TEST_P(Gemm, BiasMatchesTheTripleLoop) {
  for (int k : {64, 384}) {
    const Problem p(GetParam(), k, 192, 32, 1, false);
    const Output out = run(p, Isa::kRef, Epilogue::kBias);
    for (int r = 0; r < p.rows; ++r) {
      for (int c = 0; c < p.n; ++c) {
        ASSERT_NEAR(out.c[static_cast<size_t>(r) * p.n + c], p.expected(r, c), p.tolerance(r, c));
      }
    }
  }
}

TEST_P(Gemm, EveryIsaGivesTheSameBits) {
  for (bool extreme : {false, true}) {
    const Problem p(GetParam(), extreme ? 384 : 64, 192, GetParam() % 2 ? 32 : 64, 2, extreme);
    for (Epilogue epilogue : {Epilogue::kBias, Epilogue::kBiasGelu, Epilogue::kBiasQkv}) {
      const Output want = run(p, Isa::kRef, epilogue);
      for (Isa isa : usable_isas()) {
        const Output got = run(p, isa, epilogue);
        EXPECT_TRUE(same_bits(got.c, want.c)) << isa_name(isa);
        EXPECT_TRUE(same_bits(got.qkv, want.qkv)) << isa_name(isa);
        if (epilogue == Epilogue::kBiasGelu) {
          EXPECT_TRUE(same_bits(got.row_max, want.row_max)) << isa_name(isa);
        }
      }
    }
  }
}

TEST_P(Gemm, SharingOutColumnsChangesNoBit) {
  const Problem p(GetParam(), 128, 320, 32, 6, false);
  for (Epilogue epilogue : {Epilogue::kBias, Epilogue::kBiasGelu, Epilogue::kBiasQkv}) {
    const Output want = run(p, Isa::kRef, epilogue);
    for (Isa isa : usable_isas()) {
      for (int share : {64, 128, 192}) {
        const Output got = run(p, isa, epilogue, share);
        EXPECT_TRUE(same_bits(got.c, want.c)) << isa_name(isa) << " " << share;
        EXPECT_TRUE(same_bits(got.qkv, want.qkv)) << isa_name(isa) << " " << share;
        if (epilogue == Epilogue::kBiasGelu) {
          EXPECT_TRUE(same_bits(got.row_max, want.row_max)) << isa_name(isa) << " " << share;
        }
      }
    }
  }
}

TEST_P(Gemm, GeluAndItsLargest) {
  const Problem p(GetParam(), 128, 64, 32, 3, false);
  const Output linear = run(p, Isa::kRef, Epilogue::kBias);
  const Output out = run(p, Isa::kRef, Epilogue::kBiasGelu);
  for (int r = 0; r < p.rows; ++r) {
    float hi = -1e30f;
    for (int c = 0; c < p.n; ++c) {
      const float got = out.c[static_cast<size_t>(r) * p.n + c];
      const double x = linear.c[static_cast<size_t>(r) * p.n + c];
      // docs/numerics.md: the polynomial is within 1.08e-3, and far out within the relative error
      // of Phi's last rounding.
      ASSERT_NEAR(got, gelu(x), 1.08e-3 + 1e-6 * std::abs(x));
      ASSERT_GE(got, kLeastGelu);
      hi = std::max(hi, got);
    }
    const auto lanes = out.row_max.begin() + 16 * r;
    EXPECT_EQ(*std::max_element(lanes, lanes + 16), hi);
  }
}

INSTANTIATE_TEST_SUITE_P(RaggedRows, Gemm,
                         testing::Values(0, 1, 2, 3, 5, 6, 7, 11, 15, 16, 17, 31, 32, 33, 48, 50,
                                         63, 64, 81, 128));

// What no model but a hostile package computes: nothing below kLeastGelu may come out, since the
// quantization that follows relies on it, and all instruction sets agree on both.
TEST(Gemm, GeluOfHugeNumbersIsQuantizedAlike) {
  for (float magnitude : {1e7f, 1e12f, 1e15f}) {
    Problem p(17, 64, 192, 32, 5, false);
    for (float& scale : p.col_scale) scale = magnitude * 1e-4f;
    for (float& scale : p.row_scale) scale = 1.0f;
    const auto quantized = [&](Isa isa) {
      const Output out = run(p, isa, Epilogue::kBiasGelu);
      std::vector<const float*> rows;
      for (int r = 0; r < p.rows; ++r) rows.push_back(&out.c[static_cast<size_t>(r) * p.n]);
      std::vector<uint8_t> q(static_cast<size_t>(p.rows) * p.n);
      std::vector<float> scale(p.rows), zero(p.rows);
      const KernelRegion region(isa);
      select_kernels(isa).quantize(rows.data(), p.rows, p.n, out.row_max.data(), {}, q.data(),
                                   scale.data(), zero.data());
      for (float x : out.c) EXPECT_TRUE(x >= kLeastGelu || x == -7.0f) << x;
      return q;
    };
    const std::vector<uint8_t> want = quantized(Isa::kRef);
    for (Isa isa : usable_isas()) EXPECT_TRUE(same_bits(quantized(isa), want)) << isa_name(isa);
  }
}

TEST(Gemm, WideFeedForward) {
  const Problem p(33, 1536, 384, 32, 4, false);
  const Output want = run(p, Isa::kRef, Epilogue::kBias);
  for (Isa isa : usable_isas()) {
    EXPECT_TRUE(same_bits(run(p, isa, Epilogue::kBias).c, want.c)) << isa_name(isa);
  }
}

}  // namespace
}  // namespace qla
