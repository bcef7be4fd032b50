// When each operation of this rank came to which stage, while somebody wants to know: for the trace that ringdp/timeline.py
// writes. Off, it costs a look at a flag for each stage.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "submit/submission.h"

namespace ringdp {

class Timeline {
 public:
  struct Record {
    std::string name;
    OpKind kind;
    int process_set;
    uint64_t bytes;  // of this rank's input
    Stamps came;     // an operation that ended with its meeting never came to reduce
    Clock::time_point ended;
  };
  struct Taken {
    std::vector<Record> records;  // in the order of their ends
    uint64_t lost = 0;            // those beyond what `start` allows
  };

  // What is submitted from now on is recorded, so many operations at most. False if that was so already.
  bool start(size_t most);
  // What was recorded, and no more from now on.
  Taken stop();

  void stamp(Clock::time_point& stage) const {
    if (is_on()) stage = Clock::now();
  }
  void ended(const Submission& submission) {
    if (is_on()) note(submission);
  }

 private:
  bool is_on() const { return on_.load(std::memory_order_relaxed); }
  void note(const Submission& submission);

  std::atomic<bool> on_{false};
  std::mutex mutex_;  // guards the next two
  size_t most_ = 0;
  Taken taken_;
};

}  // namespace ringdp
