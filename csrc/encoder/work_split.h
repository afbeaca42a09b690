// How the threads of a team divide a layer: into blocks of rows, or into shares of columns.
//
// By rows, each thread takes a block of rows from out-projection to the next layer's Q, K, V, and
// reads all of the layer's weights for it. By columns, a thread reads its own columns' weights
// alone, but all meet after each product, and rows travel between their caches.
#pragma once

#include <algorithm>

#include "kernels.h"

namespace qla {

// A total cut into runs of one size; the last may be shorter.
struct Runs {
  int total, size;
  int count() const { return (total + size - 1) / size; }
  int first(int i) const { return i * size; }
  int length(int i) const { return std::min(size, total - first(i)); }
};

class WorkSplit {
 public:
  // `layer_bytes`: of the linear layers' weights, in one layer.
  WorkSplit(size_t layer_bytes, Isa isa, int threads);

  // Whether a layer of so many rows shares out columns instead of rows.
  bool by_columns(int rows) const { return rows <= most_rows_by_columns_; }

  // Blocks of rows, as many for each thread; none has more than most_block_rows().
  Runs row_blocks(int rows) const;
  int most_block_rows() const { return most_block_rows_; }

  // One run of rows for each thread: between the products of a layer that is divided by columns.
  Runs row_shares(int rows) const { return {rows, (rows + threads_ - 1) / threads_}; }

  // Runs of whole 64 columns. Two for each thread: one who was held up takes fewer.
  Runs column_shares(int columns) const;

 private:
  const int threads_, preferred_rows_, row_granularity_, most_block_rows_, most_rows_by_columns_;
};

}  // namespace qla
