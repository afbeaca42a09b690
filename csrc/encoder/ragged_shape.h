// How many rows each layer of a pass has, and where each sequence's rows begin.
//
// Rows are compact: a layer's rows are the tokens that enter it, sequence after sequence, without a
// gap where tokens were dropped. What leaves the last layer counts as the rows of layer `layers`.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace qla {

class RaggedShape {
 public:
  // `tokens` (sequences, layers + 1) as count_tokens gives them; it must outlive this object.
  RaggedShape(const int32_t* tokens, int sequences, int layers);

  int layers() const { return layers_; }
  int sequences() const { return sequences_; }

  // Rows of one sequence that enter a layer, and the first of them.
  int tokens(int layer, int sequence) const {
    return tokens_[static_cast<size_t>(sequence) * (layers_ + 1) + layer];
  }
  int start(int layer, int sequence) const { return starts(layer)[sequence]; }

  // Of all sequences.
  int rows(int layer) const { return starts(layer)[sequences_]; }

  // Whose row it is.
  int sequence_of(int layer, int row) const {
    const int* first = starts(layer);
    return static_cast<int>(std::upper_bound(first, first + sequences_, row) - first) - 1;
  }

  // Whether any sequence leaves tokens behind in a layer.
  bool drops(int layer) const { return drops_[static_cast<size_t>(layer)] != 0; }

  int longest() const { return tokens(0, longest_first(0)); }  // tokens of the longest sequence
  // Sequences in the order in which work on them is handed out: the last ones are short.
  int longest_first(int i) const { return longest_first_[static_cast<size_t>(i)]; }

 private:
  const int* starts(int layer) const {
    return &starts_[static_cast<size_t>(layer) * (sequences_ + 1)];
  }

  const int32_t* const tokens_;
  const int sequences_, layers_;
  std::vector<int> starts_;  // (layers + 1, sequences + 1)
  std::vector<char> drops_;  // by layer
  std::vector<int> longest_first_;
};

}  // namespace qla
