// A point in time after which waiting is an error. Nothing in csrc/ waits without one.
#pragma once

#include <chrono>
#include <ctime>

namespace ringdp {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

// At the last tick of the kernel, some milliseconds ago at most: 8 ns instead of 30.
inline Clock::time_point recently() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
  return Clock::time_point(std::chrono::seconds(t.tv_sec) + std::chrono::nanoseconds(t.tv_nsec));
}

class Deadline {
 public:
  static Deadline in(Seconds s) { return Deadline(Clock::now() + std::chrono::duration_cast<Clock::duration>(s)); }
  bool passed() const { return Clock::now() >= end_; }
  Clock::time_point end() const { return end_; }

 private:
  explicit Deadline(Clock::time_point end) : end_(end) {}
  Clock::time_point end_;
};

}  // namespace ringdp
