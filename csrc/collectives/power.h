// Algorithms that exchange with rank XOR 2^k need a power of two of ranks. With N ranks and P the largest power of two
// in N, the first 2 (N - P) ranks form pairs: the even one hands its tensor to the odd one, which adds it to its own
// and stands for both until the result is there. So P ranks, numbered 0 … P - 1 in the order of their ranks, remain.
// Thakur, Rabenseifner & Gropp, "Optimization of collective communication operations in MPICH", IJHPCA 19 (2005), 4.5.
//
//   six ranks, P = 4:    0 → 1    2 → 3    4    5        pairs (0 1) and (2 3)
//   numbers                  0        1    2    3
#pragma once

#include "collectives/moves.h"

namespace ringdp {

class PowerOfTwo {
 public:
  PowerOfTwo(int ranks, int rank) : rank_(rank) {
    while (1 << (levels_ + 1) <= ranks) ++levels_;
    paired_ = 2 * (ranks - (1 << levels_));
  }
  int levels() const { return levels_; }                               // log2 P
  bool hands_over() const { return rank_ < paired_ && !(rank_ & 1); }  // its tensor, to rank + 1
  bool stands_in() const { return rank_ < paired_ && (rank_ & 1); }    // for rank - 1
  int number() const { return rank_ < paired_ ? rank_ / 2 : rank_ - paired_ / 2; }
  int partner(int level) const { return rank_of(number() ^ (1 << level)); }
  bool is_lower(int level) const { return !(number() >> level & 1); }  // of the two partners

 private:
  int rank_of(int number) const { return number < paired_ / 2 ? 2 * number + 1 : number + paired_ / 2; }

  int rank_, levels_ = 0;
  int paired_ = 0;  // ranks that are in pairs
};

}  // namespace ringdp
