// Counts of progress that the other ranks of a host can read: a cache line of this rank's heap holds those of one
// operation.
//
// A count only ever rises, also when it is handed to a later operation, which starts from where it stands. So a rank that
// is late to look at the end of an operation sees at least what it waits for.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <vector>

#include "shared/heap.h"

namespace ringdp {

class Counts {
 public:
  static constexpr int kOfOperation = 2;  // lines of tokens (collectives/schedule.h)
  using Values = std::array<uint64_t, kOfOperation>;
  using Line = std::array<std::atomic<uint64_t>, kOfOperation>;

  explicit Counts(Heap& heap) : heap_(heap) {}

  // The offset of a line in the heap, or Heap::kNowhere where memory is lacking. The blocks stay with the heap.
  uint64_t take() {
    if (free_.empty()) {
      auto* block = static_cast<std::byte*>(heap_.allocate(kAtOnce * kLine));
      if (block == nullptr) return Heap::kNowhere;
      for (uint64_t i = 0; i < kAtOnce; ++i) {
        new (block + i * kLine) Line{};
        free_.push_back(heap_.offset_of(block + i * kLine, kLine));
      }
    }
    const uint64_t offset = free_.back();
    free_.pop_back();
    return offset;
  }
  void give_back(uint64_t offset) { free_.push_back(offset); }

  static Line& at(std::byte* place) { return *reinterpret_cast<Line*>(place); }
  static Values values(const Line& line) {
    return {line[0].load(std::memory_order_relaxed), line[1].load(std::memory_order_relaxed)};
  }

 private:
  static constexpr uint64_t kLine = 64, kAtOnce = 32;
  static_assert(sizeof(Line) <= kLine);
  Heap& heap_;
  std::vector<uint64_t> free_;
};

}  // namespace ringdp
