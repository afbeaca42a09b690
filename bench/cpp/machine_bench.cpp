// What this machine gives so many threads at once: the two limits that bound a forward pass.
//
//   machine_bench THREADS
//
// Prints one JSON object: the instruction set, its multiply-accumulates a second on registers
// (peak.h), and the bytes a second that the threads read from memory. The memory is larger than
// any cache, lies on pages of 2 MiB where the system has them, and every thread reads a share of
// its own from front to back, as the engine reads weights. Both are the best of several rounds: a
// limit is what the machine can do.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>

#include "cpu_features.h"
#include "kernels.h"
#include "peak.h"

namespace qla {
namespace {

constexpr int kRounds = 9;
constexpr size_t kPage = size_t{2} << 20, kBytes = size_t{512} << 20;

// Seconds that `work(thread)` takes on all threads, which begin together.
double seconds(int threads, const std::function<void(int)>& work) {
  std::atomic<int> ready{0};
  std::atomic<bool> go{false};
  std::vector<std::thread> team;
  for (int t = 0; t < threads; ++t) {
    team.emplace_back([&, t] {
      ready.fetch_add(1);
      while (!go.load()) continue;
      work(t);
    });
  }
  while (ready.load() < threads) std::this_thread::yield();
  const auto began = std::chrono::steady_clock::now();
  go.store(true);
  for (std::thread& thread : team) thread.join();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

double macs_per_second(Isa isa, int threads) {
  double best = 0;
  for (int round = 0; round < kRounds; ++round) {
    constexpr int kCalls = 20;
    const double took = seconds(threads, [isa](int) {
      begin_tiles(isa);
      for (int i = 0; i < kCalls; ++i) run_peak(isa);
      end_tiles(isa);
    });
    best = std::max(best, threads * kCalls * peak_macs(isa) / took);
  }
  return best;
}

double bytes_per_second(int threads) {
  void* const map =
      mmap(nullptr, kBytes + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) return 0;
  auto* const first =
      reinterpret_cast<uint64_t*>((reinterpret_cast<uintptr_t>(map) + kPage - 1) / kPage * kPage);
  madvise(first, kBytes, MADV_HUGEPAGE);
  const size_t words = kBytes / sizeof(uint64_t);
  for (size_t i = 0; i < words; ++i) first[i] = i;
  const size_t share = words / static_cast<size_t>(threads) / 8 * 8;
  std::atomic<uint64_t> keep{0};  // or the compiler drops the loop
  double best = 0;
  for (int round = 0; round < kRounds; ++round) {
    const double took = seconds(threads, [&](int thread) {
      const uint64_t* from = first + share * static_cast<size_t>(thread);
      uint64_t sum[8] = {};
      for (size_t i = 0; i < share; i += 8) {
        for (size_t j = 0; j < 8; ++j) sum[j] += from[i + j];
      }
      for (uint64_t one : sum) keep.fetch_add(one);
    });
    best = std::max(best, static_cast<double>(threads * share * sizeof(uint64_t)) / took);
  }
  munmap(map, kBytes + kPage);
  return best;
}

}  // namespace
}  // namespace qla

int main(int count, char** arguments) {
  using namespace qla;
  const int threads = count == 2 ? std::atoi(arguments[1]) : 0;
  if (threads < 1) {
    fprintf(stderr, "usage: machine_bench THREADS\n");
    return 2;
  }
  Isa best = Isa::kRef;
  for (Isa isa : kAllIsas) {
    if (isa_status(isa).usable) best = isa;
  }
  printf(
      "{\"isa\": \"%s\", \"threads\": %d, \"macs_per_second\": %.4g, \"bytes_per_second\": %.4g}\n",
      isa_name(best), threads, macs_per_second(best, threads), bytes_per_second(threads));
}
