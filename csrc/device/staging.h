// What an all-reduce of GPU tensors reduces, piece by piece (collectives/pieces.h): copied into pinned host memory, where the
// schedule runs, and back. All copies to the host are asked for at once, in the order in which the schedule reads; so
// copies one way, the exchange, and copies the other way overlap.
#pragma once

#include <memory>
#include <vector>

#include "collectives/pieces.h"
#include "device/gpu.h"

namespace ringdp {

class Staging final : public Pieces {
 public:
  // input, output: on the GPU, may be the same. memory: the schedule's, for `count` elements of `item` bytes.
  // ready: when the input may be read, and the output be written.
  Staging(const Schedule& schedule, Gpu& gpu, const void* input, void* output, std::shared_ptr<Gpu::Pinned> memory,
          size_t item, uint64_t count, uint64_t piece, const Gpu::Event& ready);
  ~Staging() override;

 private:
  bool arrived(uint64_t piece) override { return arrivals_[piece]->passed(); }
  uint64_t bring_in(uint64_t) override { return 0; }
  uint64_t bring_out(uint64_t piece) override;
  size_t offset(uint64_t piece) const { return begin_of(piece) * item_; }
  size_t bytes(uint64_t piece) const { return size_of_piece(piece) * item_; }

  Gpu& gpu_;
  std::byte* const output_;
  const std::shared_ptr<Gpu::Pinned> memory_;
  const size_t item_;
  std::vector<Gpu::Point> arrivals_;  // by piece
};

}  // namespace ringdp
