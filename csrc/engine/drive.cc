// Who takes the engine's turns, and when nobody does: its thread, callers that wait, and how both rest.
#include <sched.h>
#include <sys/prctl.h>

#include <algorithm>

#include "engine/engine.h"

namespace ringdp {

namespace {

constexpr auto kLook = std::chrono::milliseconds(100);

inline void spin_once() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

void Engine::main() {
  prctl(PR_SET_NAME, "ringdp-engine");
  prctl(PR_SET_TIMERSLACK, 1000);  // nanoseconds: pauses of tens of µs would otherwise last 50 µs longer
  loop();
  std::lock_guard drive(drive_);
  if (broken_) return finish_telling(Seconds(1));
  break_down(closed_error());
  if (!abandoned_) take_receives_back();
}

void Engine::loop() {
  while (!stop_) {
    const auto idle = std::chrono::microseconds(static_cast<int64_t>(1e6 / options_.idle_looks));
    std::unique_lock drive(drive_, std::defer_lock);
    if (callers_.load(std::memory_order_relaxed) > 0 || !drive.try_lock()) {
      thread_sleeps(idle);
      continue;
    }
    const bool moved = turn();
    if (everyone_left()) return end_communicators();
    const Pause rest = pause(moved, false);
    const bool waits = work_left_ = anything_active() || anything_pending();
    drive.unlock();
    if (rest.how == Pause::yield) sched_yield();
    if (rest.how == Pause::spin) spin_once();
    if (rest.how == Pause::sleep && waits) work_sleeps(rest.time);
    if (rest.how == Pause::sleep && !waits) thread_sleeps(idle);
  }
}

// A turn that meets an error of a transport is the last one, whoever comes next to take one: what has failed there must not
// be looked at again.
bool Engine::turn(Submission* own) {
  if (stop_) {
    if (own && own->handle) own->handle->fail(closed_error());
    return false;
  }
  struct Turn {  // the watch sees how long it takes
    Flight& flight;
    explicit Turn(Flight& flight) : flight(flight) { flight.turn_begins(); }
    ~Turn() { flight.turn_ends(); }
  } of_watch(watch_->flight());
  std::optional<Error> broken;
  try {
    return look_at_everything(own);
  } catch (const Error& error) {
    broken = with_culprit(error);
  } catch (const std::exception& error) {
    broken = Error(ErrorKind::internal, error.what());
  }
  break_down(*broken);
  if (own && own->handle) own->handle->fail(*broken);  // it had not been taken yet
  return false;
}

bool Engine::take_turn() {
  std::lock_guard drive(drive_);
  return !stop_ && turn();
}

// Until somebody submits or drives no more.
void Engine::thread_sleeps(std::chrono::microseconds most) {
  const uint32_t dozed = thread_bell_.doze();
  if (has_arrivals_ || stop_ || (callers_ == 0 && work_left_))  // what the last caller left, if it went just now
    thread_bell_.stay_awake();
  else
    thread_bell_.sleep(dozed, most);
}

// Until a peer has published something, or somebody submits. The last look before it is a whole turn.
void Engine::work_sleeps(std::chrono::microseconds most) {
  const uint32_t dozed = work_bell_.doze();
  bool moved = true;
  {
    std::unique_lock drive(drive_, std::try_to_lock);
    if (drive) moved = turn();
  }
  if (moved || stop_ || has_arrivals_)
    work_bell_.stay_awake();
  else
    work_bell_.sleep(dozed, most);
}

std::shared_ptr<Handle> Engine::call(Submission&& submission) {
  std::unique_lock drive(drive_, std::try_to_lock);
  if (!drive || !drives_alone(submission)) {
    if (drive) drive.unlock();
    return submit(std::move(submission));
  }
  inject(Stage::submit, submission);
  const auto handle = submission.handle = new_handle();
  {
    std::lock_guard lock(mutex_);
    admit(submission);
    Counters::add(counters_.named);
  }
  Counters::add(counters_.own);
  bool moved = turn(&submission);
  while (!handle->done() && active_.empty() && !stop_) {
    const Pause rest = pause(moved, true);
    if (rest.how != Pause::none && rest.how != Pause::spin) break;
    if (rest.how == Pause::spin) spin_once();
    moved = turn();
  }
  leave_off();
  return handle;
}

// The one of the call before, if that has gone: a loop of calls allocates none.
std::shared_ptr<Handle> Engine::new_handle() {
  if (last_handle_.use_count() != 1) return last_handle_ = std::make_shared<Handle>();
  // Behind whatever its last owner did with it before letting go.
#ifdef __SANITIZE_THREAD__  // it knows no fences; to let go of one is to acquire, too
  std::shared_ptr<Handle>(last_handle_).reset();
#else
  std::atomic_thread_fence(std::memory_order_acquire);
#endif
  last_handle_->renew();
  return last_handle_;
}

// Its turns are short then, and the order in which this thread has submitted is kept.
bool Engine::drives_alone(const Submission& own) {
  if (has_arrivals_ || !active_.empty() || !agreeing_.empty() || own.lane >= 0) return false;
  const auto set = sets_.find(own.process_set);
  return set != sets_.end() && ends_with_meeting(own, *set->second);
}

bool Engine::wait(Handle& handle, Deadline deadline, const std::function<void()>& look) {
  if (handle.done()) return true;
  const Caller caller(*this);
  while (!handle.done()) {
    if (deadline.passed()) return false;
    const auto until = std::min(deadline.end(), Clock::now() + kLook);
    if (!drive_for(handle, until)) handle.sleep_until(std::min(until, Clock::now() + std::chrono::milliseconds(1)));
    if (!handle.done() && Clock::now() >= until && look) look();
  }
  return true;
}

void Engine::wait_for_end(Handle& handle, const std::function<void()>& look) {
  constexpr double kMore = 60;  // seconds
  const auto is_patient = [this] {
    const int64_t until = std::max(roll_call_.patient_until(), watch_->flight().head().patient_until.load());
    return double(nanoseconds(Clock::now()) - until) * 1e-9 < kMore;
  };
  while (!wait(handle, Deadline::in(Seconds(options_.timeout + kMore)), look))
    if (!is_patient() && watch_->seconds_since(handle.made()) > options_.timeout + kMore)
      fail(ErrorKind::deadline, "the engine did not end an operation at its deadline: please report this");
}

// The thread takes over what is left. It is not woken for nothing: that would cost more than a small operation. (Whoever
// submits looks at callers_ after it has set has_arrivals_; here it is the other way round, so one of the two rings.)
void Engine::caller_goes() {
  if (callers_.fetch_sub(1) == 1 && (has_arrivals_ || work_left_)) thread_bell_.ring();
}

// False if somebody else drives.
bool Engine::drive_for(Handle& handle, Clock::time_point until) {
  std::unique_lock drive(drive_, std::try_to_lock);
  if (!drive) return false;
  while (!handle.done() && !stop_) {
    const bool moved = turn();
    if (handle.done()) break;
    const Pause rest = pause(moved, true);
    if (rest.how == Pause::none) continue;
    if (Clock::now() >= until) break;
    if (rest.how == Pause::spin) spin_once();
    if (rest.how == Pause::yield) sched_yield();
    if (rest.how == Pause::sleep) {
      drive.unlock();
      work_sleeps(rest.time);
      if (!drive.try_lock()) return false;
    }
  }
  leave_off();
  return true;
}

// Who has taken turns says what is left to do.
void Engine::leave_off() { work_left_ = anything_active() || anything_pending(); }

// Spin shortly, yield, then sleep. The engine's thread, beside which the user's code may compute, yields for 80 µs; a caller
// has nothing else to do, and yields for longer. Where there are more ranks than cores nobody spins. What comes through
// shared memory rings the bell, so the pauses may be long where that is all that is waited for; a transport must be
// looked at.
Engine::Pause Engine::pause(bool moved, bool caller) {
  if (moved) {
    pause_ = std::chrono::microseconds(0);
    return {};
  }
  if (still_ < kStill) return {crowded_ ? Pause::yield : Pause::none};
  const auto shortly = crowded_ ? Pause::yield : Pause::spin;
  if (still_ % 8 != 0 && pause_.count() == 0) return {shortly};
  const auto waited = std::chrono::duration<double, std::micro>(Clock::now() - last_move_).count();
  const double yields = (caller ? 50 : 5) * options_.spin_us;
  if (waited < options_.spin_us) return {shortly};
  if (waited < yields) return {Pause::yield};
  const bool rings = !waits_for_gpus() && std::all_of(sets_.begin(), sets_.end(), [](const auto& entry) {
    return entry.second->one_host();
  }) && std::none_of(active_.begin(), active_.end(), [](const Operation& operation) {
    return operation.waits_for_messages();
  });
  const int64_t most = rings ? 20000 : anything_active() || waited < 1e5 ? 100 : 1000;
  pause_ = std::chrono::microseconds(std::min<int64_t>(most, std::max<int64_t>(5, 2 * pause_.count())));
  return {Pause::sleep, rings ? std::chrono::microseconds(20000) : pause_};
}

}  // namespace ringdp
