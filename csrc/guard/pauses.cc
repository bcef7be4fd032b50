#include "guard/pauses.h"

#include <algorithm>

namespace ringdp {

Clock::duration Pauses::beat(Clock::time_point now, bool first) {
  std::lock_guard lock(mutex_);
  const bool is_beating = first || last_ != Clock::time_point();
  if (!is_beating || now <= last_) return Clock::duration::zero();  // of another thread, meanwhile
  const Clock::time_point before = last_;
  last_ = now;
  if (first || now - before <= kMost) return Clock::duration::zero();
  const Pause pause{before + kUsual, now};
  pauses_[count_++ % pauses_.size()] = pause;
  return pause.to - pause.from;
}

Clock::duration Pauses::since(Clock::time_point then) const {
  std::lock_guard lock(mutex_);
  auto sum = Clock::duration::zero();
  for (size_t i = 0; i < std::min(count_, pauses_.size()); ++i)
    sum += std::max(Clock::duration::zero(), pauses_[i].to - std::max(then, pauses_[i].from));
  return sum;
}

Clock::time_point Pauses::last_end() const {
  std::lock_guard lock(mutex_);
  return count_ == 0 ? Clock::time_point() : pauses_[(count_ - 1) % pauses_.size()].to;
}

}  // namespace ringdp
