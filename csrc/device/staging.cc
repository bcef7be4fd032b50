#include "device/staging.h"

#include <utility>

namespace ringdp {

Staging::Staging(const Schedule& schedule, Gpu& gpu, const void* input, void* output,
                 std::shared_ptr<Gpu::Pinned> memory, size_t item, uint64_t count, uint64_t piece,
                 const Gpu::Event& ready)
    : Pieces(schedule, count, piece),
      gpu_(gpu),
      output_(static_cast<std::byte*>(output)),
      memory_(std::move(memory)),
      item_(item),
      arrivals_(pieces()) {
  ready.hold_up(gpu_.to_host());
  for (const uint64_t p : order_of_reading(schedule)) {
    gpu_.copy_to_host(static_cast<std::byte*>(memory_->data()) + offset(p),
                      static_cast<const std::byte*>(input) + offset(p), bytes(p), gpu_.to_host());
    arrivals_[p] = gpu_.record(gpu_.to_host());
  }
}

// Also one that has failed half-way: what was asked of the GPU still happens.
Staging::~Staging() {
  for (Gpu::Point& point : arrivals_)
    if (point) memory_->keep_until(std::move(point));
  try {
    memory_->keep_until(gpu_.record(gpu_.from_host()));
  } catch (const Error&) {  // of a GPU that answers no more, nobody knows when it is done
    memory_->keep_for_good();
  }
}

// The input of this piece was read before, so the output is free to be written, too.
uint64_t Staging::bring_out(uint64_t p) {
  gpu_.copy_to_gpu(output_ + offset(p), static_cast<const std::byte*>(memory_->data()) + offset(p), bytes(p),
                   gpu_.from_host());
  return bytes(p);
}

}  // namespace ringdp
