// A submission whose tensors lie on a GPU, on its way without host memory: MPI sends from the GPU's memory and receives into
// it. MPI knows no streams. So no message is posted before the events have passed that say its memory may be read or
// written, and what kernels and copies of ours do is in the exchange stream, where it begins at once.
#pragma once

#include <memory>
#include <vector>

#include "collectives/run.h"
#include "device/gpu.h"
#include "submit/submission.h"
#include "world/process_set.h"

namespace ringdp {

class Direct {
 public:
  // The submission stays where it is. Throws where there is no memory for what comes in between.
  Direct(Submission& submission, const ProcessSet& set);
  ~Direct();
  Direct(const Direct&) = delete;
  Direct& operator=(const Direct&) = delete;

  const Gpu::Point& ready() const { return submission_.place->ready; }  // the tensors may be read, and written
  bool reduces() const { return reduces(submission_); }
  static bool reduces(const Submission& submission);
  bool gathers() const { return submission_.kind == OpKind::allreduce && submission_.half != Half::reduce_scatter; }

  // Of all-gather and all-to-all: asks for an output of so many rows. When it may be written.
  Gpu::Point ask_for_output(uint64_t rows);

  // From the submission's input to its output.
  Memory tensors() const { return {submission_.input, submission_.output, copies()}; }

  // Of a reduction: each rank's own chunk of all ranks' tensors is brought, reduced, and brought to all others.
  Schedule exchange(Pipeline pipeline) const;
  Memory exchanged() const { return {submission_.input, room_ ? room_->data() : nullptr, copies()}; }
  Gpu::Point reduce();  // when the chunk is done
  Schedule gather(Pipeline pipeline) const;
  Memory gathered() const { return {own_place(), submission_.output, copies()}; }

  Gpu::Point finish() const { return gpu_.record(gpu_.exchange()); }  // when the output holds the result

 private:
  uint64_t item() const { return size_of(submission_.dtype); }
  const Chunk& own() const { return chunks_[static_cast<size_t>(set_.rank())]; }
  std::byte* own_place() const;
  std::function<void(void*, const void*, size_t)> copies() const;

  Submission& submission_;
  const ProcessSet& set_;
  Gpu& gpu_;
  std::vector<Chunk> chunks_;        // of an all-reduce or reduce-scatter: elements of each rank
  std::shared_ptr<Gpu::Lent> room_;  // for the own chunk of each rank's tensor
  Gpu::Point reduced_;               // by kernels, which are the last to read it
};

}  // namespace ringdp
