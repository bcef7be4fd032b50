// Things by a number that is given with them, in memory that is used again: adding and taking away allocate nothing once
// there were as many. A number is not given again, so one that is out of date finds nothing. A thing keeps its address.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <utility>
#include <vector>

#include "base/check.h"

namespace ringdp {

template <class T>
class Slots {
 public:
  uint64_t add(T&& thing) {
    if (free_.empty()) {
      RINGDP_CHECK(slots_.size() < kMost);
      free_.push_back(static_cast<uint32_t>(slots_.size()));
      slots_.emplace_back();
    }
    const uint32_t at = free_.back();
    free_.pop_back();
    Slot& slot = slots_[at];
    slot.number = ++given_ * kMost + at;
    slot.thing.emplace(std::move(thing));
    return slot.number;
  }

  T* find(uint64_t number) {  // nullptr: it is gone
    const uint64_t at = number % kMost;
    return at < slots_.size() && slots_[at].number == number ? &*slots_[at].thing : nullptr;
  }

  void erase(uint64_t number) {
    RINGDP_CHECK(find(number) != nullptr);
    Slot& slot = slots_[number % kMost];
    slot.number = 0;
    slot.thing.reset();
    free_.push_back(static_cast<uint32_t>(number % kMost));
  }

  bool empty() const { return free_.size() == slots_.size(); }

  template <class Act>
  void for_each(const Act& act) {  // act(number, thing) may erase it
    for (size_t i = 0; i < slots_.size(); ++i)
      if (slots_[i].number != 0) act(slots_[i].number, *slots_[i].thing);
  }

 private:
  static constexpr uint64_t kMost = 1 << 20;
  struct Slot {
    uint64_t number = 0;  // 0: free
    std::optional<T> thing;
  };
  std::deque<Slot> slots_;
  std::vector<uint32_t> free_;
  uint64_t given_ = 0;
};

}  // namespace ringdp
