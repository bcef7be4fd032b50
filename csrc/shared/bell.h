// Something to sleep on that threads of other processes can ring: a count, on which a futex sleeps that is not private to
// a process.
//
// Nobody waits for a single value here: who has published something for others rings their bell, and who wakes looks at
// all it waits for. Sleeping is three steps, so that no ring is missed: doze() announces it, then the sleeper looks once
// more, and then it sleeps, or stays awake if there was something. Ringing costs a look at a cache line while nobody sleeps.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <climits>
#include <ctime>

namespace ringdp {

class Bell {
 public:
  // The fence orders what was published against the look at the sleepers; that in doze() the announcement against the
  // last look. So one of the two sees the other.
  void ring() {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_relaxed) == 0) return;
    count_.fetch_add(1, std::memory_order_release);
    syscall(SYS_futex, word(), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
  }

  uint32_t doze() {
    const uint32_t seen = count_.load(std::memory_order_acquire);
    sleepers_.fetch_add(1, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    return seen;
  }
  void sleep(uint32_t dozed, std::chrono::microseconds most) {
    const timespec time{most.count() / 1000000, most.count() % 1000000 * 1000};
    syscall(SYS_futex, word(), FUTEX_WAIT, dozed, &time, nullptr, 0);
    stay_awake();
  }
  void stay_awake() { sleepers_.fetch_sub(1, std::memory_order_relaxed); }

 private:
  uint32_t* word() { return reinterpret_cast<uint32_t*>(&count_); }
  std::atomic<uint32_t> count_{0}, sleepers_{0};
};

}  // namespace ringdp
