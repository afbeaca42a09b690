// The loops whose iterations a team shares, the barriers between them, and how a pass ends early.
#pragma once

#include <atomic>
#include <cstdint>
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
      : team_(team),
        stop_(stop),
        taken_(static_cast<size_t>(most_loops) * static_cast<size_t>(team.size())) {}

  // The iterations of `count` that are a member's own: from first to the next member's first. They
  // lie side by side, so that it reads on where it has read before, and what it wrote in one loop
  // is near in the next.
  int first_own(int member, int count) const {
    return static_cast<int>(static_cast<int64_t>(count) * member / team_.size());
  }

  // Runs work(0) to work(count - 1): each member its own, in order, and then what is left of
  // others'.
  template <typename Work>
  void run(Member& m, int count, Work work) {
    const int members = team_.size();
    std::atomic<int>* const taken = &taken_[static_cast<size_t>(m.loops_met++ * members)];
    if (stops(m)) return;  // asked in every loop, also by a member that comes too late for work
    for (int i = 0; i < members; ++i) {
      const int owner = (m.index + i) % members;
      const int first = first_own(owner, count), own = first_own(owner + 1, count) - first;
      while (taken[owner].load(std::memory_order_relaxed) < own) {
        const int done = taken[owner].fetch_add(1, std::memory_order_relaxed);
        if (done < own) work(first + done);
        if (stops(m)) return;
      }
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
  std::vector<std::atomic<int>> taken_;  // (loops, members) how many of its own are taken
  std::atomic<bool> stopped_{false};
};

}  // namespace qla
