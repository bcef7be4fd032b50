#include "submit/handle.h"

#include <utility>

namespace ringdp {

void Handle::finish(Result result) {
  if (done()) return;
  result_ = std::move(result);
  enter(Stage::done);
  end();
}

void Handle::fail(const Error& error) {
  if (done()) return;
  error_ = error;
  if (flight_) flight_->failed(record_);
  end();
}

void Handle::end() {
  flight_ = nullptr;
  done_.store(true, std::memory_order_release);
  ended_.ring();
}

void Handle::sleep_until(Clock::time_point until) {
  while (!done()) {
    const uint32_t dozed = ended_.doze();
    const auto left = std::chrono::duration_cast<std::chrono::microseconds>(until - Clock::now());
    if (done() || left.count() <= 0) return ended_.stay_awake();
    ended_.sleep(dozed, left);
  }
}

// A GPU that has failed may use it still.
bool Handle::memory_in_use() const {
  try {
    return !completed() || memory_in_use_.load();
  } catch (const Error&) {
    return true;
  }
}

Result& Handle::result() {
  if (error_) throw Error(*error_);
  return result_;
}

void Handle::renew() {
  made_ = recently();
  done_.store(false, std::memory_order_relaxed);
  memory_in_use_.store(false, std::memory_order_relaxed);
  stage_.store(Stage::submit, std::memory_order_relaxed);
  result_ = Result();
  error_.reset();
}

}  // namespace ringdp
