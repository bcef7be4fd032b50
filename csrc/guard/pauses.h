// Time in which this process did not run: it was stopped and continued, with all others of the job maybe (gang scheduling), or
// its machine was paused. Nobody could come meanwhile, so it does not count as waiting.
//
// Whoever looks at the clock now and then anyway says so by beat(): the watch's thread each second, the engine while it waits.
// Where more than kMost passes between two of these, the process was not there.
#pragma once

#include <array>
#include <cstddef>
#include <mutex>

#include "base/deadline.h"

namespace ringdp {

class Pauses {
 public:
  static constexpr auto kUsual = std::chrono::seconds(1);  // between two beats: all of it counts
  static constexpr auto kMost = std::chrono::seconds(3);   // where a machine is busy

  // From now on somebody beats.
  void begin(Clock::time_point now) { beat(now, true); }
  // By any thread. How long a pause has ended just now; zero: there was none.
  Clock::duration beat(Clock::time_point now) { return beat(now, false); }

  // What of the time from `then` on does not count.
  Clock::duration since(Clock::time_point then) const;
  Clock::time_point last_end() const;  // of the last one; the clock's epoch: there was none

 private:
  struct Pause {
    Clock::time_point from, to;
  };
  Clock::duration beat(Clock::time_point now, bool first);

  mutable std::mutex mutex_;  // guards the rest
  Clock::time_point last_;    // the epoch: nobody beats
  std::array<Pause, 16> pauses_;
  size_t count_ = 0;  // the latest of them are kept
};

}  // namespace ringdp
