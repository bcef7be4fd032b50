// The casts of an all-reduce that travels in 16 bits: each piece when it is needed (pieces.h), so that they overlap with the
// transfer of the others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/wide.h"
#include "collectives/pieces.h"

namespace ringdp {

class Casts final : public Pieces {
 public:
  // narrow: `count` elements of dtype, the schedule's input and output. piece: elements, at least 1.
  Casts(const Schedule& schedule, const Wide& wide, void* narrow, Dtype dtype, uint64_t count, uint64_t piece);

 private:
  bool arrived(uint64_t) override { return true; }
  uint64_t bring_in(uint64_t piece) override;
  uint64_t bring_out(uint64_t piece) override;

  const Wide wide_;
  std::byte* const narrow_;
  const Dtype dtype_;
  std::vector<bool> is_in_;  // by piece
};

}  // namespace ringdp
