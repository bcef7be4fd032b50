// A point in time after which waiting is an error. Nothing in csrc/ waits without one.
#pragma once

#include <chrono>

namespace ringdp {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

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
