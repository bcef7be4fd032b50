// The ring: rank r sends to r + 1 and receives from r - 1, all modulo the number of ranks.
#pragma once

#include <vector>

#include "collectives/moves.h"

namespace ringdp {

struct Ring {
  int ranks, rank;
  std::vector<int> members = {};  // who they are, if not all ranks of the process set in order

  int next() const { return member((rank + 1) % ranks); }
  int previous() const { return member(behind(1)); }
  int member(int place) const { return members.empty() ? place : members[place]; }
  int behind(int n) const { return ((rank - n) % ranks + ranks) % ranks; }
};

// The reduction over one rank: nothing is added, but the input is still scaled, moved and finished if need be.
inline Schedule reduce_alone(uint64_t count, uint64_t segment, Arithmetic arithmetic, bool in_place) {
  Moves moves;
  const Cut cut({0, count}, segment);
  for (uint64_t i = 0; i < cut.size(); ++i) {
    const auto [begin, n] = cut[i];
    const Region input = in_input(begin), output = in_output(begin);
    if (arithmetic.prescale) {
      const int32_t scaled = moves.copy(output, input, n, true, {});
      if (arithmetic.finish) moves.finish(output, output, n, {scaled});
    } else if (arithmetic.finish) {
      moves.finish(output, input, n, {});
    } else if (!in_place) {
      moves.copy(output, input, n, false, {});
    }
  }
  return moves.take();
}

}  // namespace ringdp
