// Teams, barriers and leases; of most use under QLA_SANITIZE=thread.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "teams.h"

namespace qla {
namespace {

TEST(Team, EveryMemberRunsOncePerRun) {
  for (int size : {1, 2, 3, 8}) {
    Team team(size);
    ASSERT_EQ(team.size(), size);
    std::vector<int> runs(size, 0);  // plain: each member touches its own, run() publishes them
    for (int i = 0; i < 200; ++i) team.run([&](int member) { ++runs[member]; });
    EXPECT_EQ(runs, std::vector<int>(size, 200));
  }
}

TEST(Team, WhatStandsBeforeABarrierIsSeenBehindIt) {
  constexpr int kSize = 3, kRounds = 500;
  Team team(kSize);
  std::vector<int> written(kSize, 0);
  std::atomic<int> wrong{0};
  team.run([&](int member) {
    for (int round = 1; round <= kRounds; ++round) {
      written[member] = round;
      team.barrier();
      for (int value : written) wrong += value != round;
      team.barrier();
    }
  });
  EXPECT_EQ(wrong, 0);
}

TEST(Team, SleepersWakeUp) {
  Team team(2);
  int sum = 0;
  for (int i = 0; i < 20; ++i) {
    std::this_thread::sleep_for(std::chrono::microseconds(10 * kSpinMicroseconds));
    team.run([&](int member) {
      if (member == 1) ++sum;
    });
  }
  EXPECT_EQ(sum, 20);
}

TEST(TeamPool, NoMoreCallersAtOnceThanStreams) {
  constexpr int kStreams = 2;
  TeamPool pool(kStreams, 2);
  // Each stream's workspace holds a plain counter: a lease is exclusive, so nothing guards it.
  std::atomic<int> callers{0}, most{0}, clashes{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 50; ++i) {
        const TeamPool::Lease lease(pool);
        const int now = ++callers;
        for (int seen = most; seen < now && !most.compare_exchange_weak(seen, now);) {
        }
        auto* inside = reinterpret_cast<int*>(lease.workspace().reserve(sizeof(int)));
        clashes += (*inside)++ != 0;  // fresh memory is zero
        lease.team().run([](int) {});
        --*inside;
        --callers;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(most, kStreams);
  EXPECT_EQ(clashes, 0);
}

TEST(TeamPool, CallersWaitInTheOrderTheyCame) {
  constexpr int kCallers = 6;
  TeamPool pool(1, 1);
  std::vector<int> order;  // plain: each caller writes under its lease
  std::atomic<bool> in_line[kCallers] = {};
  std::vector<std::thread> threads;
  {
    const TeamPool::Lease held(pool);
    for (int caller = 0; caller < kCallers; ++caller) {
      // Who waits is asked now and then whether to go on; so whoever was asked stands in line.
      threads.emplace_back([&, caller] {
        const auto asked = [](void* flag) {
          static_cast<std::atomic<bool>*>(flag)->store(true);
          return 0;
        };
        const TeamPool::Lease lease(pool, StopRequest(asked, &in_line[caller]));
        order.push_back(caller);
      });
      while (!in_line[caller]) std::this_thread::yield();
    }
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3, 4, 5}));
}

}  // namespace
}  // namespace qla
