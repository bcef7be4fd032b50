#include "submit/handle.h"

#include <algorithm>
#include <utility>

namespace ringdp {

void Handle::finish(Result result) {
  {
    std::lock_guard lock(mutex_);
    if (done_) return;
    result_ = std::move(result);
    enter(Stage::done);
    done_.store(true, std::memory_order_release);
  }
  changed_.notify_all();
}

void Handle::fail(const Error& error) {
  {
    std::lock_guard lock(mutex_);
    if (done_) return;
    error_ = error;
    done_.store(true, std::memory_order_release);
  }
  changed_.notify_all();
}

bool Handle::wait(Deadline deadline, const std::function<void()>& look) {
  constexpr auto kLook = std::chrono::milliseconds(100);
  std::unique_lock lock(mutex_);
  while (!done_) {
    if (deadline.passed()) return false;
    changed_.wait_until(lock, std::min(deadline.end(), Clock::now() + kLook));
    if (!done_ && look) {
      lock.unlock();
      look();
      lock.lock();
    }
  }
  return true;
}

Result& Handle::result() {
  std::lock_guard lock(mutex_);
  if (error_) throw Error(*error_);
  return result_;
}

}  // namespace ringdp
