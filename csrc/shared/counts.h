// Counts of progress that the other ranks of a host can read: each on a cache line of this rank's heap.
//
// A count only ever rises, also when it is handed to a later operation, which starts from where it stands. So a rank that
// is late to look at the end of an operation sees at least what it waits for.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "shared/heap.h"

namespace ringdp {

class Counts {
 public:
  explicit Counts(Heap& heap) : heap_(heap) {}

  // The offset of a count in the heap, or Heap::kNowhere where memory is lacking. The blocks stay with the heap.
  uint64_t take() {
    if (free_.empty()) {
      auto* block = static_cast<std::byte*>(heap_.allocate(kAtOnce * kLine));
      if (block == nullptr) return Heap::kNowhere;
      for (uint64_t i = 0; i < kAtOnce; ++i) {
        new (block + i * kLine) std::atomic<uint64_t>(0);
        free_.push_back(heap_.offset_of(block + i * kLine, kLine));
      }
    }
    const uint64_t offset = free_.back();
    free_.pop_back();
    return offset;
  }
  void give_back(uint64_t offset) { free_.push_back(offset); }

  static std::atomic<uint64_t>* at(std::byte* place) { return reinterpret_cast<std::atomic<uint64_t>*>(place); }

 private:
  static constexpr uint64_t kLine = 64, kAtOnce = 32;
  Heap& heap_;
  std::vector<uint64_t> free_;
};

}  // namespace ringdp
