#include "teams.h"

#include <immintrin.h>
#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <system_error>

#include "error.h"

namespace qla {
namespace {

constexpr int kAskMilliseconds = 20;  // how often a waiting caller is asked whether to go on

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

// Delegating makes the object complete first: if a thread cannot start, ~Team joins the others.
Team::Team(int threads) : Team() {
  try {
    for (int member = 1; member < threads; ++member) {
      workers_.emplace_back([this, member] { work(member); });
    }
  } catch (const std::system_error& error) {
    fail(QLA_UNSUPPORTED, "could start only %d of %d threads (%s); lower num_threads or streams",
         size(), threads, error.what());
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
  struct Stream {
    std::unique_ptr<Team> team;  // started when first used
    Workspace workspace;
  };

  explicit State(int count) : generation(fork_generation), streams(static_cast<size_t>(count)) {
    for (int i = count - 1; i >= 0; --i) idle.push_back(i);
  }

  const unsigned generation;  // of the process that made it
  std::mutex mutex;
  std::condition_variable turn;
  std::vector<Stream> streams;
  std::vector<int> idle;
  std::deque<const Lease*> line;  // who waits, the first to come in front
};

TeamPool::TeamPool(int streams, int threads) : streams_(streams), threads_(threads) {
  count_forks();
}

TeamPool::~TeamPool() {
  State* state = state_.load();
  // A parent's threads do not exist in its child; joining them would hang.
  if (state && state->generation == fork_generation) delete state;
}

// Without a lock: a thread that did not come along through fork() might hold it.
TeamPool::State& TeamPool::state() {
  State* current = state_.load();
  if (current && current->generation == fork_generation) return *current;
  auto fresh = std::make_unique<State>(streams_);
  if (state_.compare_exchange_strong(current, fresh.get())) return *fresh.release();
  return *current;  // another thread was first
}

thread_local const TeamPool::Lease* TeamPool::Lease::innermost_ = nullptr;

TeamPool::Lease::Lease(TeamPool& pool, const StopRequest& stop)
    : pool_(pool), state_(pool.state()), outer_(innermost_) {
  for (const Lease* held = outer_; held; held = held->outer_) {
    if (&held->pool_ != &pool) continue;
    fail(QLA_INVALID_INPUT,
         "the engine was called from inside one of its own calls (by its stop callback; in Python, "
         "by a signal handler); call it after that call has returned, or use another engine");
  }
  wait_for_turn(stop);
  innermost_ = this;
}

void TeamPool::Lease::wait_for_turn(const StopRequest& stop) {
  std::unique_lock<std::mutex> lock(state_.mutex);
  state_.line.push_back(this);
  const auto leave_line = [&] {
    state_.line.erase(std::find(state_.line.begin(), state_.line.end(), this));
    state_.turn.notify_all();
  };
  const auto my_turn = [&] { return state_.line.front() == this && !state_.idle.empty(); };
  if (!stop.possible()) state_.turn.wait(lock, my_turn);
  while (!state_.turn.wait_for(lock, std::chrono::milliseconds(kAskMilliseconds), my_turn)) {
    lock.unlock();  // the callback may wait for a lock of its own
    const bool asked = stop.asked();
    lock.lock();
    if (!asked) continue;
    leave_line();
    StopRequest::stopped();
  }
  leave_line();
  index_ = state_.idle.back();
  auto& team = state_.streams[static_cast<size_t>(index_)].team;
  if (!team) team = std::make_unique<Team>(pool_.threads_);
  state_.idle.pop_back();  // last: a team that cannot start leaves the stream to the next caller
}

TeamPool::Lease::~Lease() {
  innermost_ = outer_;
  {
    const std::lock_guard<std::mutex> lock(state_.mutex);
    state_.idle.push_back(index_);
  }
  state_.turn.notify_all();
}

Team& TeamPool::Lease::team() const { return *state_.streams[static_cast<size_t>(index_)].team; }
Workspace& TeamPool::Lease::workspace() const {
  return state_.streams[static_cast<size_t>(index_)].workspace;
}

}  // namespace qla
