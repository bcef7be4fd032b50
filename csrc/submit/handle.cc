#include "submit/handle.h"

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

void Handle::sleep_until(Clock::time_point until) {
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, until, [this] { return done(); });
}

Result& Handle::result() {
  std::lock_guard lock(mutex_);
  if (error_) throw Error(*error_);
  return result_;
}

}  // namespace ringdp
