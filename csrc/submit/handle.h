// What a submission gives back: poll it, wait for it, read its result. Shared by the caller's thread and by whoever takes
// the engine's turns; that one alone ends it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "base/deadline.h"
#include "base/error.h"
#include "device/gpu.h"
#include "engine/stage.h"
#include "guard/flight.h"
#include "shared/bell.h"

namespace ringdp {

// What an operation returns besides the caller's own output buffer.
struct Result {
  std::unique_ptr<std::byte[]> output;  // all-gather and all-to-all: sizes are known only after the ranks have told
  uint64_t output_bytes = 0;
  std::vector<uint64_t> rows;   // all-gather: rows of each rank; all-to-all: rows received from each rank
  std::vector<uint64_t> words;  // vote: the merged fields
  int lane = -1;                // open_plan: the lane of the plan
  Gpu::Point completed;  // of tensors on a GPU: when they hold the result, which may be after the operation is done
};

class Handle {
 public:
  bool done() const { return done_.load(std::memory_order_acquire); }
  Clock::time_point made() const { return made_; }

  // From now on its record in the flight recorder, which must live until it is done, says how it stands.
  void note_in(Flight& flight, uint64_t number) { flight_ = &flight, record_ = number; }
  Stage stage() const { return stage_.load(std::memory_order_relaxed); }
  void enter(Stage stage) {
    stage_.store(stage, std::memory_order_relaxed);
    if (flight_) flight_->enter(record_, stage);
  }

  // The first end counts. By whoever takes the engine's turns, one at a time.
  void finish() { finish(Result()); }
  void finish(Result result);
  void fail(const Error& error);

  // Done, and what it has asked of a GPU is done, too.
  bool completed() const { return done() && (!result_.completed || result_.completed->passed()); }

  // The operation was given up while the transport may still use the tensors: they must outlive the engine.
  void give_up_memory() { memory_in_use_.store(true); }
  bool memory_in_use() const;

  void sleep_until(Clock::time_point until);  // or until done

  // After done().
  bool failed() const { return done() && error_.has_value(); }
  const Error& error() const { return *error_; }

  // After done(): throws what went wrong, or gives the result.
  Result& result();

  // As new, for another operation. Only when nobody else has it.
  void renew();

 private:
  void end();

  Clock::time_point made_ = recently();
  std::atomic<bool> done_{false}, memory_in_use_{false};
  std::atomic<Stage> stage_{Stage::submit};
  Flight* flight_ = nullptr;
  uint64_t record_ = 0;
  Bell ended_;
  Result result_;  // this and the next are written before done_
  std::optional<Error> error_;
};

}  // namespace ringdp
