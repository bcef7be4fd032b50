#include "engine/timeline.h"

#include <utility>

namespace ringdp {

bool Timeline::start(size_t most) {
  std::lock_guard lock(mutex_);
  most_ = most;
  return !on_.exchange(true);
}

Timeline::Taken Timeline::stop() {
  on_ = false;
  std::lock_guard lock(mutex_);
  return std::exchange(taken_, {});
}

void Timeline::note(const Submission& s) {
  if (s.came.submit == Clock::time_point()) return;  // before the start
  std::lock_guard lock(mutex_);
  if (!is_on()) return;
  if (taken_.records.size() == most_) {
    ++taken_.lost;
    return;
  }
  taken_.records.push_back({s.lane < 0 ? s.name : s.bucket_name(), s.kind, s.process_set, s.count() * size_of(s.dtype),
                            s.came, Clock::now()});
}

}  // namespace ringdp
