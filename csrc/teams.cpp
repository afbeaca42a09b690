#include "teams.h"

#include <immintrin.h>
#include <pthread.h>

#include <chrono>

namespace qla {
namespace {

// Spins, then sleeps, until `value` differs from `seen`.
void wait_for_change(const std::atomic<unsigned>& value, unsigned seen) {
  const auto deadline =
      std::chrono::steady_clock::now() + std::chrono::microseconds(kSpinMicroseconds);
  do {
    for (int i = 0; i < 32; ++i) {
      if (value.load(std::memory_order_acquire) != seen) return;
      _mm_pause();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  while (value.load(std::memory_order_acquire) == seen) value.wait(seen);
}

// Counts the forks this process descends from.
std::atomic<unsigned> fork_generation{0};

void count_forks() {
  static const int once = pthread_atfork(nullptr, nullptr, [] { ++fork_generation; });
  (void)once;
}

}  // namespace

Team::Team(int threads) {
  for (int member = 1; member < threads; ++member) {
    workers_.emplace_back([this, member] { work(member); });
  }
}

Team::~Team() {
  stop_ = true;
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void Team::start(Task task, void* context) {
  if (workers_.empty()) return task(context, 0);
  task_ = task;
  context_ = context;
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  task(context, 0);
  barrier();
}

void Team::work(int member) {
  for (unsigned epoch = 0;; ++epoch) {
    wait_for_change(epoch_, epoch);
    if (stop_) return;
    task_(context_, member);
    barrier();
  }
}

void Team::barrier() {
  if (workers_.empty()) return;
  const unsigned phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size()) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.fetch_add(1, std::memory_order_release);
    phase_.notify_all();
  } else {
    wait_for_change(phase_, phase);
  }
}

struct TeamPool::State {
  std::mutex mutex;
  std::condition_variable turn;
  std::vector<std::unique_ptr<Team>> teams;  // started when first used
  std::vector<int> idle;
  uint64_t next_ticket = 0, serving = 0;
};

TeamPool::TeamPool(int streams, int threads) : streams_(streams), threads_(threads) {
  count_forks();
  generation_ = fork_generation;
}

TeamPool::~TeamPool() {
  // In a forked child these teams' threads do not exist; joining them would hang.
  if (generation_ != fork_generation) (void)state_.release();
}

TeamPool::State& TeamPool::state() {
  const std::lock_guard<std::mutex> lock(fork_mutex_);
  if (generation_ != fork_generation) {
    // The parent's state may be locked by a thread that was not copied: leave it behind.
    (void)state_.release();
    generation_ = fork_generation;
  }
  if (!state_) {
    state_ = std::make_unique<State>();
    state_->teams.resize(static_cast<size_t>(streams_));
    for (int i = streams_ - 1; i >= 0; --i) state_->idle.push_back(i);
  }
  return *state_;
}

TeamPool::Lease::Lease(TeamPool& pool) : pool_(pool) {
  State& s = pool.state();
  std::unique_lock<std::mutex> lock(s.mutex);
  const uint64_t ticket = s.next_ticket++;
  s.turn.wait(lock, [&] { return s.serving == ticket && !s.idle.empty(); });
  index_ = s.idle.back();
  s.idle.pop_back();
  ++s.serving;
  try {
    auto& team = s.teams[static_cast<size_t>(index_)];
    if (!team) team = std::make_unique<Team>(pool.threads_);
  } catch (...) {
    s.idle.push_back(index_);
    s.turn.notify_all();
    throw;
  }
  s.turn.notify_all();
}

TeamPool::Lease::~Lease() {
  State& s = *pool_.state_;
  {
    const std::lock_guard<std::mutex> lock(s.mutex);
    s.idle.push_back(index_);
  }
  s.turn.notify_all();
}

Team& TeamPool::Lease::team() const { return *pool_.state_->teams[static_cast<size_t>(index_)]; }

}  // namespace qla
