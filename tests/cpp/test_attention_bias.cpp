// A model that adds to its logits brings a Bias class, and nothing else of attention changes: shown
// by a bias on the distance between tokens, as T5 and MPNet have one, on the plain C++ lanes.
#include "attention_reference.h"
#include "simd/ref.h"
//
#include "attention_dot.h"

namespace qla {
namespace {

// A number for each bucket of the distance from query to key, where both stood in the text.
struct DistanceBias {
  static constexpr bool kAdds = true;
  static constexpr int kBuckets = 12;
  const AttentionArgs& a;

  explicit DistanceBias(const AttentionArgs& args) : a(args) {}
  static int bucket(int distance) {
    int size = std::abs(distance), b = 0;
    while (size > 0 && b < kBuckets / 2 - 1) size /= 2, ++b;
    return distance < 0 ? b + kBuckets / 2 : b;
  }
  int position(int row) const { return a.positions ? a.positions[row] : row; }
  f32x16 operator()(int query, int j) const {
    return lanes<f32x16>([&](int l) {
      const int key = std::min(j + l, a.n - 1);
      return a.bias[bucket(position(key) - position(query))];
    });
  }
};

void biased(const AttentionArgs& a) { attention<DotProducts, DistanceBias>(a); }

AttentionProblem problem(int n, int head_dim) {
  AttentionProblem p(n, head_dim, 5, 1.0f);
  for (int d = 0; d < head_dim; ++d) p.q[n / 2 * head_dim + d] = 0;  // a query without a scale
  p.bias = Random(9).floats(DistanceBias::kBuckets, 3.0f);
  return p;
}

TEST(AttentionBias, MatchesDoublePrecisionWhereTokensWereDropped) {
  for (int head_dim : {32, 64}) {
    for (int n : {1, 7, 16, 33, 100}) {
      AttentionProblem p = problem(n, head_dim);
      for (int i = 0; i < n; ++i) p.positions.push_back(i + i * i / 7);
      expect_double_precision(p, attend(p, Isa::kRef, biased), [&](int query, int key) {
        return p.bias[DistanceBias::bucket(p.positions[key] - p.positions[query])];
      });
    }
  }
}

TEST(AttentionBias, WithoutPositionsRowsStandWhereTheyStood) {
  AttentionProblem p = problem(77, 32);
  const AttentionOutput none = attend(p, Isa::kRef, biased);
  for (int i = 0; i < p.n; ++i) p.positions.push_back(i);
  const AttentionOutput same = attend(p, Isa::kRef, biased);
  EXPECT_TRUE(same_bits(none.out, same.out) && same_bits(none.column_sum, same.column_sum));
  for (int32_t& position : p.positions) position *= 3;
  EXPECT_FALSE(same_bits(attend(p, Isa::kRef, biased).out, same.out));
}

}  // namespace
}  // namespace qla
