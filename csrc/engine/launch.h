// An operation on GPU tensors that NCCL carries out, from when all ranks have come to it until the GPU has been told all.
//
// What NCCL does not do as ringdp promises it - minima with NaNs, int16, chunks of different sizes - it only moves: each rank
// gets its own chunk of all ranks' tensors, our kernels reduce them in the order of the ranks, and the results are gathered.
#pragma once

#include <cstdint>
#include <tuple>
#include <vector>

#include "base/deadline.h"
#include "collectives/elements.h"
#include "collectives/schedule.h"
#include "device/captured_graph.h"
#include "device/communicator.h"
#include "device/kernels.h"
#include "submit/submission.h"
#include "world/process_set.h"

namespace ringdp {

// Who carries an operation out: NCCL; NCCL, which moves chunks, and kernels of ours, which reduce them; or it goes through
// host memory.
enum class By { nccl, chunks, host_memory };

// A pure function of what is the same on all ranks. `kernels`: all have ours.
By way_of(const Submission& submission, const ProcessSet& set, bool kernels);

// What must be the same on all ranks that come to a bucket.
uint64_t bucket_signature(const Submission& bucket);

class Launch {
 public:
  enum class Stage { meeting, ordering, ordered, calling, running };

  // `rows`: of all-gather and all-to-all, those that come from each rank.
  Launch(Submission submission, ProcessSet& set, uint64_t ticket, std::vector<uint64_t> rows);

  uint64_t sequence() const { return Tickets::sequence_of(ticket); }
  int lane() const { return submission.lane < 0 ? 0 : submission.lane; }
  std::string label() const;
  // Its place in the order of all operations on this GPU, whatever their process sets; before it is agreed on, one that it
  // comes no earlier than.
  auto place() const { return std::tuple(clock, set.id, lane(), sequence()); }
  By by() const { return by_; }
  bool prepare();  // asks for memory, the output's too; false where there is none
  void call();     // NCCL, in our stream
  bool settled() { return nccl_.settled(); }
  bool go_on();      // that is settled: launches what comes behind it; true if NCCL was called again
  Gpu::Point end();  // of all that was launched; in a graph, also noted there

  Submission submission;
  ProcessSet& set;
  const uint64_t ticket;
  const std::vector<uint64_t> rows;
  const Clock::time_point since = Clock::now();
  Stage stage = Stage::meeting;
  uint64_t clock = 0;

 private:
  void begin_replay();
  void carry_out();
  CapturedGraph::Replays& replays();
  void call_allgather();
  void call_alltoall();
  void gather(const void* mine, const std::vector<Chunk>& parts);
  void begin_reduction();
  void reduce_by_nccl();
  void exchange_chunks();
  void finish(void* sums, uint64_t count);
  Kernels& kernels();
  const Chunk& own() const;
  std::byte* own_place() const;
  std::byte* output() const { return static_cast<std::byte*>(submission.output); }
  uint64_t item() const { return size_of(submission.dtype); }
  uint64_t scratch_bytes() const;

  const By by_;
  Gpu& gpu_;
  Communicator& nccl_;
  const cuda::Stream stream_;
  std::vector<Chunk> chunks_;     // of a reduction: elements of each rank
  std::byte* scratch_ = nullptr;  // the GPU's or the graph's, while this is called
  Gpu::Point output_ready_;
  bool begins_replay_ = false, is_finished_ = false;
};

}  // namespace ringdp
