// Which tokens stay: top-k by attention column sum. No kernel gathers them: kept rows are picked up
// by index where they are quantized and normalized anyway.
#include <algorithm>
#include <cstring>
#include <functional>

#include "kernels.h"

namespace qla {
namespace {

// Orders by score, ties by lower position, in one integer comparison. Scores are sums of
// probabilities: not negative, so their bits rise with their values.
uint64_t rank_key(float score, int position) {
  uint32_t bits;
  memcpy(&bits, &score, sizeof bits);
  return static_cast<uint64_t>(bits) << 32 | (0xffffffffu - static_cast<uint32_t>(position));
}

}  // namespace

void select_top_k(const float* scores, int n, int k, bool keep_first_row, uint64_t* scratch,
                  int32_t* kept) {
  for (int j = 0; j < n; ++j) scratch[j] = rank_key(scores[j], j);
  if (keep_first_row) scratch[0] = ~uint64_t{0};
  const uint64_t first = scratch[0];
  uint64_t* const last_kept = scratch + (k - 1);
  std::nth_element(scratch, last_kept, scratch + n, std::greater<>());
  const uint64_t threshold = *last_kept;
  for (int j = 0, i = 0; j < n; ++j) {
    const uint64_t key = j == 0 ? first : rank_key(scores[j], j);
    if (key >= threshold) kept[i++] = j;
  }
}

}  // namespace qla
