// An all-reduce of tensors on GPUs in two levels: by NCCL in each host, by messages between the hosts.
//
// The tensor is cut into segments, and each takes three steps, one after the other:
//
//   reduce-scatter   by NCCL among the ranks of the host, after which each has its own chunk of the segment
//   ring             of that chunk, through host memory, among the ranks at the same place of all hosts
//   all-gather       by NCCL in the host
//
// A step is an operation like any other, of a process set of its own (ProcessSet::in_host, between_hosts), and so has
// its agreement, its place in the order of launches and its deadline. On the GPU it waits for the event that the step
// before has left; the host hands it in when that event is known, not when it has passed. While the chunk of one segment
// is between the hosts, GPUs work on others.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "collectives/elements.h"
#include "collectives/schedule.h"
#include "engine/counters.h"
#include "submit/submission.h"
#include "world/process_set.h"

namespace ringdp {

class TwoLevels {
 public:
  using HandIn = std::function<std::shared_ptr<Handle>(ProcessSet&, Submission)>;

  TwoLevels(Submission submission, ProcessSet& set, uint64_t ticket, Counters& counters);

  uint64_t sequence() const { return Tickets::sequence_of(ticket); }
  int lane() const { return submission.lane < 0 ? 0 : submission.lane; }
  std::string label() const;
  bool prepare();                           // false: there is no memory for what comes in between
  bool advance(const HandIn& hand_in);      // true if anything was done; throws what a step has failed of
  bool done() const { return left_ == 0; }  // the GPU has been told all

  Submission submission;
  ProcessSet& set;
  const uint64_t ticket;
  const Clock::time_point since = Clock::now();
  bool all_have_come = false;

 private:
  enum class Step { reduce_scatter, ring, all_gather, none };
  struct Segment {
    Chunk all, own;                  // elements of the tensor: the segment's, and of them this rank's
    Step step;                       // that is under way, or the next
    std::shared_ptr<Handle> handle;  // while it is under way
    Gpu::Point ready;                // for the next step
  };

  void end_step(Segment& segment);
  Submission step_of(const Segment& segment) const;
  uint64_t key_of_step(const Segment& segment) const;
  ProcessSet& set_of(Step step) const { return step == Step::ring ? *set.between_hosts : *set.in_host; }

  Counters& counters_;
  const Elements elements_;  // what is done to all of them: before the first step, and at the end of the ring
  std::vector<Segment> segments_;
  size_t left_;    // segments that have steps to take
  int rings_ = 0;  // under way
};

}  // namespace ringdp
