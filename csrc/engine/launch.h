// An operation on GPU tensors that NCCL carries out, from when all ranks have come to it until the GPU has done it.
#pragma once

#include <cstdint>
#include <tuple>
#include <vector>

#include "base/deadline.h"
#include "device/communicator.h"
#include "submit/submission.h"
#include "world/process_set.h"

namespace ringdp {

// A pure function of what is the same on all ranks: whether NCCL does just what is asked. What it cannot goes through host
// memory.
bool is_for_nccl(const Submission& submission, int ranks);

struct Launch {
  enum class Stage { meeting, ordering, ordered, calling, running };

  // `rows`: of all-gather and all-to-all, those that come from each rank.
  Launch(Submission submission, ProcessSet& set, uint64_t ticket, std::vector<uint64_t> rows, Deadline deadline)
      : submission(std::move(submission)), set(set), ticket(ticket), rows(std::move(rows)), deadline(deadline) {}

  uint64_t sequence() const { return Tickets::sequence_of(ticket); }
  int lane() const { return submission.lane < 0 ? 0 : submission.lane; }
  std::string label() const;
  // Its place in the order of all operations on this GPU, whatever their process sets; before it is agreed on, one that it
  // comes no earlier than.
  auto place() const { return std::tuple(clock, set.id, lane(), sequence()); }
  bool prepare();  // asks for the output; false where there is no memory
  void call();     // NCCL, in the exchange stream

  Submission submission;
  ProcessSet& set;
  const uint64_t ticket;
  const std::vector<uint64_t> rows;
  const Deadline deadline;
  Stage stage = Stage::meeting;
  uint64_t clock = 0;
  Gpu::Point output_ready, completed;

 private:
  void call_allgather(Communicator& nccl);
  void call_alltoall(Communicator& nccl);
};

}  // namespace ringdp
