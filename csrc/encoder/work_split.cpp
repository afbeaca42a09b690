#include "encoder/work_split.h"

namespace qla {
namespace {

// Where threads share out columns: few rows, and a layer's weights too large for L2. Below 16 rows
// a thread, streaming weights takes longer than multiplying by them; and at MiniLM's 1.8 MB a
// layer, rows that travel between cores cost more than weights that are read twice.
constexpr int kRowsByColumns = 16;  // a thread
constexpr size_t kBytesByColumns = size_t{4} << 20;

int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace

WorkSplit::WorkSplit(size_t layer_bytes, Isa isa, int threads)
    : threads_(threads),
      preferred_rows_(preferred_row_block(isa)),
      row_granularity_(row_granularity(isa)),
      most_block_rows_(round_up(preferred_rows_, kRowPadding)),
      most_rows_by_columns_(threads > 1 && layer_bytes >= kBytesByColumns ? threads * kRowsByColumns
                                                                          : 0) {}

Runs WorkSplit::row_blocks(int rows) const {
  const int wanted = round_up((rows + preferred_rows_ - 1) / preferred_rows_, threads_);
  const int size = std::max(1, (rows + wanted - 1) / wanted);
  return {rows, round_up(size, row_granularity_)};
}

Runs WorkSplit::column_shares(int columns) const {
  const int panels = columns / 64, wanted = std::min(panels, 2 * threads_);
  return {columns, (panels + wanted - 1) / wanted * 64};
}

}  // namespace qla
