// The runtimes that size their pool by the host's core count are throttled in every container with
// a CPU quota; hence the reading of cgroup files here.
#include "thread_budget.h"

#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <limits>
#include <sstream>
#include <string_view>
#include <vector>

namespace qla {
namespace {

constexpr double kNoLimit = std::numeric_limits<double>::infinity();

// Both versions say the same thing: so many microseconds of CPU in every period of so many.
double quota_of(std::istream&& quota_file, std::istream&& period_file) {
  double quota, period;
  if (!(quota_file >> quota)) return kNoLimit;  // no file, or "max"
  if (!(period_file >> period)) return kNoLimit;
  return quota > 0 && period > 0 ? quota / period : kNoLimit;  // v1 writes -1 for no limit
}

double quota_v2(const std::string& folder) {
  std::ifstream file(folder + "/cpu.max");
  std::string quota, period;
  file >> quota >> period;
  return quota_of(std::istringstream(quota), std::istringstream(period));
}

double quota_v1(const std::string& folder) {
  return quota_of(std::ifstream(folder + "/cpu.cfs_quota_us"),
                  std::ifstream(folder + "/cpu.cfs_period_us"));
}

bool has_item(const std::string& list, std::string_view item) {
  std::istringstream items(list);
  for (std::string each; std::getline(items, each, ',');)
    if (each == item) return true;
  return false;
}

// One mounted hierarchy that may limit CPU time.
struct Mount {
  bool v2;
  std::string top;    // the group that stands at the mount point; in a container often not "/"
  std::string point;  // where it is mounted
};

// /proc/self/mountinfo: id parent device top point options [optional...] - type source options
std::vector<Mount> cgroup_mounts(const std::string& root) {
  std::vector<Mount> mounts;
  std::ifstream file(root + "/proc/self/mountinfo");
  for (std::string line; std::getline(file, line);) {
    std::istringstream fields(line);
    std::string skip, type, options;
    Mount mount;
    fields >> skip >> skip >> skip >> mount.top >> mount.point;
    while (fields >> skip && skip != "-") {
    }
    fields >> type >> skip >> options;
    mount.v2 = type == "cgroup2";
    if (mount.v2 || (type == "cgroup" && has_item(options, "cpu"))) mounts.push_back(mount);
  }
  return mounts;
}

// /proc/self/cgroup: "0::/path" in v2, "4:cpu,cpuacct:/path" in v1. Empty when there is none.
std::string own_group(const std::string& root, bool v2) {
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (v2 ? line.starts_with("0::") : has_item(controllers, "cpu")) return line.substr(second + 1);
  }
  return "";
}

// The group's path below the mount point: "" for the mount point itself, which is also all that can
// be seen of a group outside it.
std::string below(const Mount& mount, const std::string& group) {
  if (group.find("..") != std::string::npos) return "";
  const std::string top = mount.top == "/" ? "" : mount.top;
  if (!(group + "/").starts_with(top + "/")) return "";
  std::string path = group.substr(top.size());
  while (path.ends_with('/')) path.pop_back();
  return path;
}

std::string format(double quota) {
  if (quota == kNoLimit) return "none";
  char text[32];
  snprintf(text, sizeof text, "%.2f", quota);
  return text;
}

// The first number of a list such as "4,2", with blanks around it; 0 when there is none.
int first_positive(std::string_view text) {
  text = text.substr(0, text.find(','));
  const size_t begin = text.find_first_not_of(" \t"), end = text.find_last_not_of(" \t");
  if (begin == text.npos) return 0;
  text = text.substr(begin, end - begin + 1);
  int value = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && stop == text.data() + text.size() && value > 0 ? value : 0;
}

}  // namespace

int affinity_cpus() {
  // The mask has as many bits as the kernel was built for, which may be more than cpu_set_t has.
  for (int bits = CPU_SETSIZE; bits <= 1 << 20; bits *= 2) {
    cpu_set_t* set = CPU_ALLOC(bits);
    if (set == nullptr) break;
    const size_t size = CPU_ALLOC_SIZE(bits);
    const bool read = sched_getaffinity(0, size, set) == 0;
    const int count = read ? CPU_COUNT_S(size, set) : 0;
    CPU_FREE(set);
    if (read) return std::max(count, 1);
  }
  return std::max(static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)), 1);
}

double cgroup_cpus(const std::string& root) {
  double least = kNoLimit;
  for (const Mount& mount : cgroup_mounts(root)) {
    std::string path = below(mount, own_group(root, mount.v2));
    for (;;) {
      const std::string folder = root + mount.point + path;
      least = std::min(least, mount.v2 ? quota_v2(folder) : quota_v1(folder));
      if (path.empty()) break;
      path.erase(path.rfind('/'));
    }
  }
  return least;
}

ThreadBudget thread_budget(int affinity, double quota, const char* omp_num_threads) {
  int threads = affinity;
  // Rounded down: threads that meet at barriers all stand still while one is throttled.
  if (quota < threads) threads = std::max(static_cast<int>(std::floor(quota)), 1);
  std::string omp = "unset";
  if (omp_num_threads != nullptr) {
    const int limit = first_positive(omp_num_threads);
    omp = limit > 0 ? std::to_string(limit)
                    : "\"" + std::string(omp_num_threads).substr(0, 32) + "\" ignored";
    if (limit > 0) threads = std::min(threads, limit);
  }
  return {threads, std::to_string(threads) + " = min(affinity " + std::to_string(affinity) +
                       ", cgroup quota " + format(quota) + ", OMP_NUM_THREADS " + omp + ")"};
}

ThreadBudget default_thread_budget() {
  return thread_budget(affinity_cpus(), cgroup_cpus(""), getenv("OMP_NUM_THREADS"));
}

}  // namespace qla
