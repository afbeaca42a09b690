// Threads: S teams of T members. A call borrows one team; the calling thread is member 0, so a
// one-thread engine never touches another thread. Callers beyond S wait in the order they came.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace qla {

// Waiting threads spin this long before they sleep: longer than the gaps between the stages of one
// call, far shorter than the gap between two calls of an idle service.
constexpr int kSpinMicroseconds = 50;

class Team {
 public:
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

// Owns the teams and hands them out first come, first served. After fork() the child has none of
// its parent's threads, so it starts teams of its own on its first call.
class TeamPool {
 public:
  TeamPool(int streams, int threads);
  ~TeamPool();

  class Lease {
   public:
    Lease(TeamPool& pool);
    ~Lease();
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    Team& team() const;
    int index() const { return index_; }  // which stream: selects the workspace

   private:
    TeamPool& pool_;
    int index_;
  };

  int streams() const { return streams_; }
  int threads() const { return threads_; }

 private:
  struct State;
  State& state();

  const int streams_, threads_;
  std::mutex fork_mutex_;
  std::unique_ptr<State> state_;
  unsigned generation_;
};

}  // namespace qla
