// The default thread count against laid-out systems: cgroup trees of both versions, in and out of
// containers, and what people write into OMP_NUM_THREADS.
#include <gtest/gtest.h>
#include <sched.h>
#include <stdlib.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>

#include "thread_budget.h"

namespace qla {
namespace {

constexpr double kNone = std::numeric_limits<double>::infinity();

class CgroupTree : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "qla_cgroup_XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    root_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  void write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  void v2(const std::string& group, const std::string& top = "/") {
    write("/proc/self/cgroup", "0::" + group + "\n");
    write("/proc/self/mountinfo",
          "22 1 0:20 / /proc rw,nosuid - proc proc rw\n"
          "30 23 0:26 " +
              top + " /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw\n");
  }
  void v1(const std::string& group, const std::string& top = "/") {
    write("/proc/self/cgroup", "5:memory:/elsewhere\n4:cpu,cpuacct:" + group + "\n0::/\n");
    write("/proc/self/mountinfo",
          "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
          "32 31 0:30 " +
              top +
              " /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
              "33 31 0:31 " +
              top + " /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n");
  }
  void v1_quota(const std::string& group, const std::string& quota, const std::string& period) {
    write("/sys/fs/cgroup/cpu,cpuacct" + group + "/cpu.cfs_quota_us", quota + "\n");
    write("/sys/fs/cgroup/cpu,cpuacct" + group + "/cpu.cfs_period_us", period + "\n");
  }

  std::string root_;
};

TEST_F(CgroupTree, NothingThereMeansNoLimit) { EXPECT_EQ(cgroup_cpus(root_), kNone); }

TEST_F(CgroupTree, V2) {
  v2("/user.slice/job");
  EXPECT_EQ(cgroup_cpus(root_), kNone);
  write("/sys/fs/cgroup/user.slice/job/cpu.max", "max 100000\n");
  EXPECT_EQ(cgroup_cpus(root_), kNone);
  write("/sys/fs/cgroup/user.slice/job/cpu.max", "150000 100000\n");
  EXPECT_EQ(cgroup_cpus(root_), 1.5);
}

TEST_F(CgroupTree, V2TheTightestGroupAboveCounts) {
  v2("/a/b/c");
  write("/sys/fs/cgroup/a/b/c/cpu.max", "800000 100000\n");
  write("/sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
  write("/sys/fs/cgroup/a/cpu.max", "30000 10000\n");
  write("/sys/fs/cgroup/a/other/cpu.max", "1000 100000\n");
  EXPECT_EQ(cgroup_cpus(root_), 3.0);
}

// With a cgroup namespace a container sees itself as "/", at the mount point.
TEST_F(CgroupTree, V2InAContainer) {
  v2("/");
  write("/sys/fs/cgroup/cpu.max", "200000 100000\n");
  EXPECT_EQ(cgroup_cpus(root_), 2.0);
}

// A group outside the namespace is written with "..": only the mount point can be read.
TEST_F(CgroupTree, V2OutsideTheNamespace) {
  v2("/../../secret");
  write("/sys/fs/cgroup/cpu.max", "200000 100000\n");
  write("/secret/cpu.max", "1000 100000\n");
  EXPECT_EQ(cgroup_cpus(root_), 2.0);
}

TEST_F(CgroupTree, V1) {
  v1("/docker/abc");
  v1_quota("/docker/abc", "-1", "100000");
  EXPECT_EQ(cgroup_cpus(root_), kNone);
  v1_quota("/docker/abc", "400000", "100000");
  EXPECT_EQ(cgroup_cpus(root_), 4.0);
  v1_quota("/docker", "250000", "100000");
  EXPECT_EQ(cgroup_cpus(root_), 2.5);
}

// Without a cgroup namespace the container's group is what stands at the mount point.
TEST_F(CgroupTree, V1MountedFromInside) {
  v1("/docker/abc/child", "/docker/abc");
  v1_quota("", "300000", "100000");
  EXPECT_EQ(cgroup_cpus(root_), 3.0);
  v1_quota("/child", "100000", "100000");
  EXPECT_EQ(cgroup_cpus(root_), 1.0);
}

// "/docker/abcdef" is not below "/docker/abc".
TEST_F(CgroupTree, V1NeighbourWithALongerName) {
  v1("/docker/abcdef", "/docker/abc");
  v1_quota("", "300000", "100000");
  v1_quota("def", "100000", "100000");
  EXPECT_EQ(cgroup_cpus(root_), 3.0);
}

TEST_F(CgroupTree, NonsenseMeansNoLimit) {
  v2("/");
  for (const char* text :
       {"", "\n", "max", "abc def", "100000", "0 100000", "-5 100000", "100000 0", "100000 max"}) {
    write("/sys/fs/cgroup/cpu.max", text);
    EXPECT_EQ(cgroup_cpus(root_), kNone) << text;
  }
  write("/proc/self/mountinfo", "short line\n\n - \n");
  EXPECT_EQ(cgroup_cpus(root_), kNone);
  write("/proc/self/cgroup", "0:\nabc\n\n");
  EXPECT_EQ(cgroup_cpus(root_), kNone);
}

TEST(ThreadBudget, TakesTheLeastAndSaysWhy) {
  const struct {
    int affinity;
    double quota;
    const char* omp;
    int threads;
    const char* source;
  } kCases[] = {
      {2, kNone, nullptr, 2, "2 = min(affinity 2, cgroup quota none, OMP_NUM_THREADS unset)"},
      {8, 3.0, nullptr, 3, "3 = min(affinity 8, cgroup quota 3.00, OMP_NUM_THREADS unset)"},
      {8, 1.5, "4", 1, "1 = min(affinity 8, cgroup quota 1.50, OMP_NUM_THREADS 4)"},
      {8, 0.25, nullptr, 1, "1 = min(affinity 8, cgroup quota 0.25, OMP_NUM_THREADS unset)"},
      {8, kNone, "4,2", 4, "4 = min(affinity 8, cgroup quota none, OMP_NUM_THREADS 4)"},
      {8, 64.0, " 5 ", 5, "5 = min(affinity 8, cgroup quota 64.00, OMP_NUM_THREADS 5)"},
      {4, kNone, "16", 4, "4 = min(affinity 4, cgroup quota none, OMP_NUM_THREADS 16)"},
  };
  for (const auto& c : kCases) {
    const ThreadBudget budget = thread_budget(c.affinity, c.quota, c.omp);
    EXPECT_EQ(budget.threads, c.threads) << c.source;
    EXPECT_EQ(budget.source, c.source);
  }
}

TEST(ThreadBudget, IgnoresWhatIsNoPositiveNumberAndSaysSo) {
  for (const char* omp : {"", " ", "0", "-2", "abc", "4x", ",4", "2 3", "1.5", "99999999999"}) {
    const ThreadBudget budget = thread_budget(3, kNone, omp);
    EXPECT_EQ(budget.threads, 3) << omp;
    EXPECT_EQ(budget.source, "3 = min(affinity 3, cgroup quota none, OMP_NUM_THREADS \"" +
                                 std::string(omp) + "\" ignored)");
  }
}

TEST(ThreadBudget, FollowsTheAffinityOfThisThread) {
  cpu_set_t before, one;
  ASSERT_EQ(sched_getaffinity(0, sizeof before, &before), 0);
  EXPECT_EQ(affinity_cpus(), CPU_COUNT(&before));
  CPU_ZERO(&one);
  CPU_SET(sched_getcpu(), &one);
  ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
  EXPECT_EQ(affinity_cpus(), 1);
  EXPECT_EQ(default_thread_budget().threads, 1);
  sched_setaffinity(0, sizeof before, &before);
}

}  // namespace
}  // namespace qla
