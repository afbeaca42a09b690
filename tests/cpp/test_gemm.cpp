// The GEMM of every weight format: accumulators exact against a plain triple loop, outputs equal to
// the bit across instruction sets, over ragged row counts.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <numeric>

#include "kernel_fixtures.h"

namespace qla {
namespace {

constexpr int kRaggedRows[] = {0,  1,  2,  3,  5,  6,  7,  11, 15, 16,
                               17, 31, 32, 33, 48, 50, 63, 64, 81, 128};

// (n, k) weights in a format.
std::vector<int8_t> pack(WeightFormat format, const std::vector<int8_t>& weight, int k, int n) {
  std::vector<int8_t> packed(weight_bytes(format, k, n));
  switch (format) {
    case WeightFormat::kW8A8:
      for (int c = 0; c < n; ++c) {
        for (int i = 0; i < k; ++i) {
          packed[static_cast<size_t>(c / 64) * 64 * k + i / 4 * 256 + c % 64 * 4 + i % 4] =
              weight[static_cast<size_t>(c) * k + i];
        }
      }
      break;
    case WeightFormat::kW2A8:
      for (int c = 0; c < n; ++c) {
        for (int i = 0; i < k; ++i) {
          packed[static_cast<size_t>(c / 64) * 16 * k + i / 4 * 64 + c % 16 * 4 + i % 4] |=
              static_cast<int8_t>((weight[static_cast<size_t>(c) * k + i] + 1)
                                  << (c % 64 / 16 * 2));
        }
      }
  }
  return packed;
}

struct Problem {
  WeightFormat format;
  int rows, k, n, head_dim;
  std::vector<uint8_t> a;      // (rows padded, k)
  std::vector<int8_t> weight;  // (n, k) plain
  std::vector<int8_t> packed;
  std::vector<float> row_scale, row_zero, col_scale, bias, col_sum;

  Problem(WeightFormat format_, int rows_, int k_, int n_, int head_dim_, unsigned seed,
          bool extreme = false)
      : format(format_), rows(rows_), k(k_), n(n_), head_dim(head_dim_) {
    Random random(seed);
    const size_t padded = static_cast<size_t>((rows + kRowPadding - 1) / kRowPadding * kRowPadding);
    a = random.ints<uint8_t>(padded * k, extreme ? 255 : 0, 255);
    const bool ternary = format == WeightFormat::kW2A8;
    const int most = ternary ? 1 : 127, least = ternary ? -1 : extreme ? -128 : -127;
    weight = random.ints<int8_t>(static_cast<size_t>(n) * k, extreme ? most : least, most);
    if (extreme) {
      for (size_t i = 0; i < weight.size(); i += 2 * static_cast<size_t>(k)) {
        for (int j = 0; j < k; ++j) weight[i + j] = static_cast<int8_t>(least);
      }
    }
    packed = pack(format, weight, k, n);
    row_scale = random.floats(rows, 0.02f);
    for (int zero : random.ints<int>(rows, 0, 255)) row_zero.push_back(static_cast<float>(zero));
    col_scale = random.floats(n, 0.01f);
    bias = random.floats(n, 0.5f);
    for (int sum : column_sums()) col_sum.push_back(static_cast<float>(sum));
  }

  std::vector<int32_t> column_sums() const {
    std::vector<int32_t> sums;
    for (int c = 0; c < n; ++c) {
      const auto first = weight.begin() + static_cast<ptrdiff_t>(c) * k;
      sums.push_back(std::accumulate(first, first + k, 0));
    }
    return sums;
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

bool same_outputs(const Output& a, const Output& b) {
  return same_bits(a.c, b.c) && same_bits(a.row_max, b.row_max) && same_bits(a.qkv, b.qkv);
}

enum class Epilogue { kBias, kGelu, kQkv };
constexpr Epilogue kAllEpilogues[] = {Epilogue::kBias, Epilogue::kGelu, Epilogue::kQkv};

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
  std::vector<int8_t> scratch(gemm_scratch_bytes(p.k) + 16, 77);  // 16 guards
  g.scratch = scratch.data();
  const Gemm gemm = select_kernels(isa).gemm(p.format);
  const KernelRegion region(isa);
  const int columns = share ? share : p.n;
  std::vector<float> row_max(out.row_max.size());
  for (g.first_col = 0; g.first_col < p.n; g.first_col = g.last_col) {
    g.last_col = std::min(g.first_col + columns, p.n);
    g.next = share ? p.packed.data() : nullptr;  // which changes no result
    if (epilogue == Epilogue::kBias) gemm(g, BiasOut{out.c.data(), p.n});
    if (epilogue == Epilogue::kQkv) gemm(g, QkvOut{qkv_row.data(), qkv_stride.data(), p.head_dim});
    if (epilogue != Epilogue::kGelu) continue;
    gemm(g, GeluOut{out.c.data(), p.n, row_max.data()});
    for (size_t i = 0; i < row_max.size(); ++i) {
      out.row_max[i] = g.first_col == 0 ? row_max[i] : std::max(out.row_max[i], row_max[i]);
    }
  }
  for (size_t i = scratch.size() - 16; i < scratch.size(); ++i) EXPECT_EQ(scratch[i], 77);
  return out;
}

double gelu(double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }

class GemmReference : public testing::TestWithParam<WeightFormat> {};

TEST_P(GemmReference, BiasMatchesTheTripleLoop) {
  for (int rows : kRaggedRows) {
    for (int k : {64, 384}) {
      const Problem p(GetParam(), rows, k, 192, 32, 1);
      const Output out = run(p, Isa::kRef, Epilogue::kBias);
      for (int r = 0; r < p.rows; ++r) {
        for (int c = 0; c < p.n; ++c) {
          ASSERT_NEAR(out.c[static_cast<size_t>(r) * p.n + c], p.expected(r, c), p.tolerance(r, c));
        }
      }
    }
  }
}

TEST_P(GemmReference, GeluAndItsLargest) {
  for (int rows : kRaggedRows) {
    const Problem p(GetParam(), rows, 128, 64, 32, 3);
    const Output linear = run(p, Isa::kRef, Epilogue::kBias);
    const Output out = run(p, Isa::kRef, Epilogue::kGelu);
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
}

TEST_P(GemmReference, ColumnSums) {
  for (bool extreme : {false, true}) {
    for (int k : {64, 256, 320, 4096}) {  // about the steps in which words are added up
      const Problem p(GetParam(), 1, k, 192, 32, 7, extreme);
      std::vector<int32_t> sums(static_cast<size_t>(p.n), -7);
      // Vectors are loaded from aligned memory, as a package's tensors are.
      std::unique_ptr<int8_t, decltype(&free)> aligned(
          static_cast<int8_t*>(aligned_alloc(64, p.packed.size())), free);
      std::copy(p.packed.begin(), p.packed.end(), aligned.get());
      weight_format(p.format).column_sums(aligned.get(), k, p.n, sums.data());
      EXPECT_EQ(sums, p.column_sums()) << k;
    }
  }
}

TEST_P(GemmReference, TheShapeHoldsTheBlocks) {
  const WeightShape shape = weight_format(GetParam()).shape(128, 320);
  EXPECT_EQ(static_cast<size_t>(shape.column_blocks) * shape.steps * shape.columns * shape.bytes,
            weight_bytes(GetParam(), 128, 320));
}

INSTANTIATE_TEST_SUITE_P(, GemmReference, testing::ValuesIn(kAllWeightFormats),
                         [](const testing::TestParamInfo<WeightFormat>& format) {
                           return std::string(kWeightFormatNames.begin()[format.index]);
                         });

class Gemms : public OnEveryIsa {};

TEST_P(Gemms, GiveTheSameBits) {
  for (WeightFormat format : kAllWeightFormats) {
    for (int rows : kRaggedRows) {
      for (bool extreme : {false, true}) {
        const Problem p(format, rows, extreme ? 384 : 64, 192, rows % 2 ? 32 : 64, 2, extreme);
        for (Epilogue epilogue : kAllEpilogues) {
          EXPECT_TRUE(same_outputs(run(p, GetParam(), epilogue), run(p, Isa::kRef, epilogue)))
              << rows;
        }
      }
    }
    const Problem wide(format, 33, 1536, 384, 32, 4);
    EXPECT_TRUE(same_outputs(run(wide, GetParam(), Epilogue::kBias),
                             run(wide, Isa::kRef, Epilogue::kBias)));
  }
}

TEST_P(Gemms, DoNotNoticeHowColumnsAreShared) {
  for (WeightFormat format : kAllWeightFormats) {
    for (int rows : kRaggedRows) {
      const Problem p(format, rows, 128, 320, 32, 6);
      for (Epilogue epilogue : kAllEpilogues) {
        const Output want = run(p, Isa::kRef, epilogue);
        for (int share : {64, 128, 192}) {
          EXPECT_TRUE(same_outputs(run(p, GetParam(), epilogue, share), want))
              << rows << " " << share;
        }
      }
    }
  }
}

// What no model but a hostile package computes: nothing below kLeastGelu may come out, since the
// quantization that follows relies on it, and all instruction sets agree on both.
TEST_P(Gemms, GeluOfHugeNumbersIsQuantizedAlike) {
  for (WeightFormat format : kAllWeightFormats) {
    for (float magnitude : {1e7f, 1e12f, 1e15f}) {
      Problem p(format, 17, 64, 192, 32, 5);
      for (float& scale : p.col_scale) scale = magnitude * 1e-4f;
      for (float& scale : p.row_scale) scale = 1.0f;
      const auto quantized = [&](Isa isa) {
        const Output out = run(p, isa, Epilogue::kGelu);
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
      EXPECT_TRUE(same_bits(quantized(GetParam()), quantized(Isa::kRef))) << magnitude;
    }
  }
}

QLA_TEST_ON_EVERY_ISA(Gemms);

}  // namespace
}  // namespace qla
