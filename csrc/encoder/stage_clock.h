// Wall time by stage, on the calling thread, when somebody asked.
#pragma once

#include <chrono>

namespace qla {

class StageClock {
 public:
  explicit StageClock(double* seconds) : seconds_(seconds) {  // (QLA_NUM_STAGES), or null
    if (seconds_) last_ = now();
  }
  // What has passed since the last lap belongs to this stage.
  void lap(int stage) {
    if (!seconds_) return;
    const double t = now();
    seconds_[stage] += t - last_;
    last_ = t;
  }

 private:
  static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
  double* seconds_;
  double last_ = 0.0;
};

}  // namespace qla
