// A submission whose tensors lie on a GPU, on its way through host memory: the operation runs on pinned memory in their
// place, and what comes of it is copied back.
#pragma once

#include <memory>

#include "collectives/pieces.h"
#include "device/gpu.h"
#include "submit/submission.h"

namespace ringdp {

class Staged {
 public:
  // From now on `submission` names host memory. rank: this one's number, among `ranks` of the process set.
  Staged(Submission& submission, int rank, int ranks);
  ~Staged();
  Staged(const Staged&) = delete;
  Staged& operator=(const Staged&) = delete;

  bool in_pieces() const { return in_pieces_; }
  const Gpu::Point& arrival() const { return arrival_; }  // of all of the input, where something must wait for it
  std::unique_ptr<Pieces> pieces(const Schedule& schedule, uint64_t segment) const;

  // Of all-gather and all-to-all: host memory for so many rows, whose place on the GPU the caller was asked for.
  void* output_of(uint64_t rows, uint64_t bytes);

  // The operation has succeeded: what is not copied back yet is asked for. When the outputs hold the result.
  Gpu::Point finish();

 private:
  std::shared_ptr<Gpu::Pinned> block(uint64_t bytes) { return gpu_.pinned(bytes); }

  const std::shared_ptr<OnGpu> place_;
  Gpu& gpu_;
  const void* const input_;  // on the GPU
  void* output_;
  const Dtype dtype_;
  const uint64_t count_;
  uint64_t output_bytes_;
  const bool in_pieces_;
  std::shared_ptr<Gpu::Pinned> from_, to_;  // may be the same
  Gpu::Point arrival_;
};

}  // namespace ringdp
