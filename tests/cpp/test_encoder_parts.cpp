// The encoder's ground: shapes of ragged passes, how work is divided, and the loops that share it.
// What stands on it is tested through the door, from Python.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "encoder/ragged_shape.h"
#include "encoder/shared_loops.h"
#include "encoder/work_split.h"

namespace qla {
namespace {

// Three sequences, two layers: the first drops in layer 0, the last in layer 1.
const std::vector<int32_t> kTokens = {5, 2, 2, 7, 7, 7, 7, 7, 3};

TEST(RaggedShape, RowsStandBesideEachOther) {
  const RaggedShape shape(kTokens.data(), 3, 2);
  const std::vector<std::vector<int>> starts = {{0, 5, 12, 19}, {0, 2, 9, 16}, {0, 2, 9, 12}};
  for (int layer = 0; layer <= 2; ++layer) {
    const std::vector<int>& first = starts[static_cast<size_t>(layer)];
    EXPECT_EQ(shape.rows(layer), first[3]);
    for (int s = 0; s < 3; ++s) {
      EXPECT_EQ(shape.start(layer, s), first[static_cast<size_t>(s)]);
      EXPECT_EQ(shape.tokens(layer, s), kTokens[static_cast<size_t>(3 * s + layer)]);
      for (int r = first[static_cast<size_t>(s)]; r < first[static_cast<size_t>(s) + 1]; ++r) {
        EXPECT_EQ(shape.sequence_of(layer, r), s) << "row " << r << " of layer " << layer;
      }
    }
  }
}

TEST(RaggedShape, KnowsWhichLayersDropAndWhoIsLongest) {
  const RaggedShape shape(kTokens.data(), 3, 2);
  EXPECT_TRUE(shape.drops(0));
  EXPECT_TRUE(shape.drops(1));
  EXPECT_EQ(shape.longest(), 7);
  EXPECT_EQ(shape.longest_first(0), 1);  // of two equals the first
  EXPECT_EQ(shape.longest_first(1), 2);
  EXPECT_EQ(shape.longest_first(2), 0);
  const RaggedShape middle(kTokens.data() + 3, 1, 2);
  EXPECT_FALSE(middle.drops(0));
  EXPECT_FALSE(middle.drops(1));
}

// Of a w8a8 layer, its feed-forward part four times as wide.
size_t layer_bytes(int hidden) { return 12 * static_cast<size_t>(hidden) * hidden; }

int sum_of_lengths(const Runs& runs) {
  int sum = 0;
  for (int i = 0; i < runs.count(); ++i) {
    EXPECT_EQ(runs.first(i), sum);
    EXPECT_GT(runs.length(i), 0);
    sum += runs.length(i);
  }
  return sum;
}

TEST(WorkSplit, EveryRowAndColumnIsDoneOnce) {
  for (const Isa isa : kAllIsas) {
    for (const int threads : {1, 2, 3, 16}) {
      const WorkSplit split(layer_bytes(384), isa, threads);
      for (int rows = 1; rows < 700; ++rows) {
        const Runs blocks = split.row_blocks(rows);
        ASSERT_EQ(sum_of_lengths(blocks), rows);
        ASSERT_LE(blocks.size, split.most_block_rows());
        ASSERT_EQ(blocks.size % row_granularity(isa), 0);
        const Runs shares = split.row_shares(rows);
        ASSERT_EQ(sum_of_lengths(shares), rows);
        ASSERT_LE(shares.count(), threads);
      }
      for (int columns = 64; columns <= 16384; columns += 64) {
        const Runs shares = split.column_shares(columns);
        ASSERT_EQ(sum_of_lengths(shares), columns);
        ASSERT_EQ(shares.size % 64, 0);
        ASSERT_LE(shares.count(), 2 * threads);
      }
    }
  }
}

TEST(WorkSplit, ColumnsAreSharedForFewRowsOfWideModels) {
  const auto by_columns = [](int hidden, int threads, int rows) {
    return WorkSplit(layer_bytes(hidden), Isa::kAvx2, threads).by_columns(rows);
  };
  EXPECT_TRUE(by_columns(768, 2, 1));
  EXPECT_TRUE(by_columns(768, 2, 32));
  EXPECT_FALSE(by_columns(768, 2, 33));
  EXPECT_FALSE(by_columns(768, 1, 1));  // nobody to share with
  EXPECT_FALSE(by_columns(384, 2, 1));  // its weights fit L2
}

TEST(SharedLoops, EachPieceRunsOnceAndInTheLoopItBelongsTo) {
  constexpr int kLoops = 20, kPieces = 100, kThreads = 4;
  Team team(kThreads);
  const StopRequest never;
  SharedLoops loops(team, never, kLoops);
  std::vector<std::atomic<int>> runs(kLoops * kPieces);
  team.run([&](int index) {
    Member m{index, StageClock(nullptr)};
    for (int loop = 0; loop < kLoops; ++loop) {
      loops.run(m, kPieces, [&](int i) { ++runs[static_cast<size_t>(loop * kPieces + i)]; });
    }
  });
  for (const std::atomic<int>& count : runs) EXPECT_EQ(count, 1);
  EXPECT_FALSE(loops.stopped());
}

TEST(SharedLoops, StopIsAskedOnTheCallingThreadAndSeenByAll) {
  struct Asked {
    const std::thread::id caller = std::this_thread::get_id();
    std::atomic<bool> elsewhere{false};
    static int32_t answer(void* self) {
      auto& asked = *static_cast<Asked*>(self);
      if (std::this_thread::get_id() != asked.caller) asked.elsewhere = true;
      return 1;
    }
  } asked;
  Team team(3);
  const StopRequest stop(Asked::answer, &asked);
  SharedLoops loops(team, stop, 2);
  std::atomic<int> behind_the_barrier{0};
  team.run([&](int index) {
    Member m{index, StageClock(nullptr)};
    loops.run(m, 10, [](int) {});
    loops.wait(m);
    loops.run(m, 10, [&](int) { ++behind_the_barrier; });
  });
  EXPECT_TRUE(loops.stopped());
  EXPECT_FALSE(asked.elsewhere);
  EXPECT_EQ(behind_the_barrier, 0);
}

}  // namespace
}  // namespace qla
