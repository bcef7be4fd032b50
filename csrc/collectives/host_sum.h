// The sum of what the ranks of a host contribute to a segment, in the order of the ring: for the one at place r of N the
// contributions of r+1, r+2, … and at last its own. So the bits do not depend on the way in which they came together.
#pragma once

#include "collectives/moves.h"

namespace ringdp {

class HostSum {
 public:
  static constexpr uint64_t kScratch = 2;  // segments: the sum so far, and a scaled operand

  // me: this rank's place among the `ranks` of the host. Segments are `segment` elements long at the most.
  HostSum(Moves& moves, int ranks, int me, bool prescale, uint64_t scratch_begin, uint64_t segment)
      : moves_(moves),
        ranks_(ranks),
        me_(me),
        prescale_(prescale),
        total_(in_scratch(scratch_begin)),
        scaled_(in_scratch(scratch_begin + segment)) {}

  // to = the sum; operand_of(place) is where a contribution lies. `last`: the sum before this one, which used the same
  // scratch; and nothing is read before `others`.
  template <class Operand>
  int32_t add(uint64_t n, Region to, const Operand& operand_of, int32_t last, int32_t others) {
    Region so_far = operand_of((me_ + 1) % ranks_);
    const bool scale = prescale_ && so_far.place != Place::area;  // what is in an area is scaled already
    const auto scaled = [&](Region operand, Region place) {
      if (!scale) return operand;
      last = moves_.copy(place, operand, n, true, {last, others});
      return place;
    };
    so_far = scaled(so_far, total_);
    for (int next = 2; next < ranks_; ++next) {
      const Region theirs = scaled(operand_of((me_ + next) % ranks_), scaled_);
      last = moves_.reduce(total_, theirs, so_far, n, {last, others});
      so_far = total_;
    }
    Region own = operand_of(me_);
    if (prescale_) {
      last = moves_.copy(to, own, n, true, {last, others});
      own = to;
    }
    return moves_.reduce(to, own, so_far, n, {last, others});
  }

 private:
  Moves& moves_;
  const int ranks_, me_;
  const bool prescale_;
  const Region total_, scaled_;
};

}  // namespace ringdp
