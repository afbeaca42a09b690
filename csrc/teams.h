// Threads: S teams of T members. A call borrows one team; the calling thread is member 0, so a
// one-thread engine never touches another thread. Callers beyond S wait in the order they came.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "stop.h"
#include "workspace.h"

namespace qla {

// Waiting threads spin this long before they sleep: longer than the gaps between the stages of one
// call, far shorter than the gap between two calls of an idle service.
constexpr int kSpinMicroseconds = 50;

class Team {
 public:
  // Throws qla::Error when the system grants fewer threads; none is left behind.
  explicit Team(int threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Runs body(member) on every member and returns when all are done. `body` must not throw.
  template <typename Body>
  void run(Body&& body) {
    start([](void* context, int member) { (*static_cast<Body*>(context))(member); }, &body);
  }

  // Inside run(): returns when every member has called it.
  void barrier();

 private:
  Team() = default;
  using Task = void (*)(void* context, int member);
  void start(Task task, void* context);
  void work(int member);

  std::vector<std::thread> workers_;
  Task task_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<unsigned> epoch_{0};  // rises by one per run
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> phase_{0};  // rises by one per barrier
  bool stop_ = false;                           // published by epoch_
};

// Owns the streams, a team and a workspace each, and hands them out first come, first served. After
// fork() the child has none of its parent's threads, and may have copied its locks and workspaces
// in mid-change: it leaves them all behind and starts anew on its first call.
class TeamPool {
  struct State;

 public:
  TeamPool(int streams, int threads);
  ~TeamPool();

  // One stream, for one call. Throws what Team throws, QLA_STOPPED while it waits for its turn, and
  // QLA_INVALID_INPUT on a thread that has a lease of this pool: it would wait for itself.
  class Lease {
   public:
    explicit Lease(TeamPool& pool, const StopRequest& stop = {});
    ~Lease();
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    Team& team() const;
    Workspace& workspace() const;

   private:
    void wait_for_turn(const StopRequest& stop);

    const TeamPool& pool_;
    State& state_;
    const Lease* const outer_;  // the lease that this thread had before, of another pool
    int index_;
    static thread_local const Lease* innermost_;
  };

  int streams() const { return streams_; }
  int threads() const { return threads_; }

 private:
  State& state();

  const int streams_, threads_;
  std::atomic<State*> state_{nullptr};
};

}  // namespace qla
