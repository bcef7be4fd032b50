// A tensor whose elements lie in several places: the gradients of a bucket, each where autograd has put it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace ringdp {

struct Part {
  void* data;
  uint64_t count;  // elements, never 0
};

class Parts {
 public:
  Parts() = default;
  Parts(const std::vector<Part>& parts, size_t item) : item_(item) {
    uint64_t end = 0;
    for (const Part& part : parts) {
      data_.push_back(static_cast<std::byte*>(part.data));
      ends_.push_back(end += part.count);
    }
  }
  bool empty() const { return data_.empty(); }

  // Where element `offset` lies; `count` is lowered to how many lie there in a row.
  std::byte* at(uint64_t offset, uint64_t& count) const {
    const size_t part = std::upper_bound(ends_.begin(), ends_.end(), offset) - ends_.begin();
    count = std::min(count, ends_[part] - offset);
    return data_[part] + (offset - (part ? ends_[part - 1] : 0)) * item_;
  }

  void gather(std::byte* to) const {
    for_each([&](std::byte* part, size_t bytes) { std::memcpy(std::exchange(to, to + bytes), part, bytes); });
  }
  void scatter(const std::byte* from) const {
    for_each([&](std::byte* part, size_t bytes) { std::memcpy(part, std::exchange(from, from + bytes), bytes); });
  }

 private:
  template <class Act>
  void for_each(const Act& act) const {
    uint64_t begin = 0;
    for (size_t i = 0; i < data_.size(); begin = ends_[i++]) act(data_[i], (ends_[i] - begin) * item_);
  }

  size_t item_ = 0;
  std::vector<std::byte*> data_;
  std::vector<uint64_t> ends_;  // of each part, in elements of the whole
};

}  // namespace ringdp
