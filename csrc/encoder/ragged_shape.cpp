#include "encoder/ragged_shape.h"

#include <numeric>

namespace qla {

RaggedShape::RaggedShape(const int32_t* tokens, int sequences, int layers)
    : tokens_(tokens),
      sequences_(sequences),
      layers_(layers),
      starts_(static_cast<size_t>(layers + 1) * (sequences + 1)),
      drops_(static_cast<size_t>(layers)),
      longest_first_(static_cast<size_t>(sequences)) {
  for (int layer = 0; layer <= layers; ++layer) {
    int* const first = &starts_[static_cast<size_t>(layer) * (sequences + 1)];
    for (int s = 0; s < sequences; ++s) {
      first[s + 1] = first[s] + this->tokens(layer, s);
      if (layer < layers && this->tokens(layer + 1, s) < this->tokens(layer, s)) {
        drops_[static_cast<size_t>(layer)] = 1;
      }
    }
  }
  std::iota(longest_first_.begin(), longest_first_.end(), 0);
  std::stable_sort(longest_first_.begin(), longest_first_.end(),
                   [&](int a, int b) { return this->tokens(0, a) > this->tokens(0, b); });
}

}  // namespace qla
