// How many threads an engine uses when nobody says:
// min(scheduling affinity, cgroup CPU quota, OMP_NUM_THREADS), at least 1.
#pragma once

#include <string>

namespace qla {

struct ThreadBudget {
  int threads;
  std::string source;  // "2 = min(affinity 2, cgroup quota none, OMP_NUM_THREADS unset)"
};

ThreadBudget default_thread_budget();

// Its parts. `root` stands before every path read, so that tests can lay out a system of their own.

// CPUs this thread may be scheduled on.
int affinity_cpus();

// CPUs worth of time per period that cgroups v1 and v2 grant this process: the least of its own
// group and all groups above. Infinity without a limit, or where nothing can be read.
double cgroup_cpus(const std::string& root);

// `omp_num_threads` as in the environment, null when unset. The first value of a list counts; what
// is not a positive number is ignored, and the sentence says so.
ThreadBudget thread_budget(int affinity, double quota, const char* omp_num_threads);

}  // namespace qla
