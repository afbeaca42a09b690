// The loops whose iterations a team shares, the barriers between them, and how a pass ends early.
#pragma once

#include <atomic>
#include <vector>

#include "encoder/stage_clock.h"
#include "qla/qla.h"
#include "stop.h"
#include "teams.h"

namespace qla {

// One thread of the team on its way through a pass. Members pass through the same loops in the same
// order.
struct Member {
  const int index;  // 0: the calling thread
  StageClock clock;
  int loops_met = 0;
};

class SharedLoops {
 public:
  SharedLoops(Team& team, const StopRequest& stop, int most_loops)
      : team_(team), stop_(stop), next_(static_cast<size_t>(most_loops)) {}

  // Runs work(0) to work(count - 1), each on the member that is free first.
  template <typename Work>
  void run(Member& m, int count, Work work) {
    std::atomic<int>& next = next_[static_cast<size_t>(m.loops_met++)];
    while (!stops(m)) {
      const int i = next.fetch_add(1, std::memory_order_relaxed);
      if (i >= count) return;
      work(i);
    }
  }

  // Returns when every member has come here.
  void wait(Member& m) {
    team_.barrier();
    m.clock.lap(QLA_STAGE_WAIT);
  }

  // Whether the caller has ended the pass: its results are then incomplete.
  bool stopped() const { return stopped_.load(std::memory_order_relaxed); }

 private:
  // Without work to do, a stopped pass still meets all of its barriers. Whoever skips a piece of
  // work has seen stopped_, so behind the next barrier all members see it: nobody reads what is
  // missing.
  bool stops(const Member& m) {
    const bool asks = m.index == 0;  // callbacks run on the calling thread
    if (!stopped() && asks && stop_.asked()) stopped_.store(true, std::memory_order_relaxed);
    return stopped();
  }

  Team& team_;
  const StopRequest& stop_;
  std::vector<std::atomic<int>> next_;  // by loop: its next iteration
  std::atomic<bool> stopped_{false};
};

}  // namespace qla
