// All-reduce by ring. Every rank sends 2 (N-1)/N of the tensor, the least there can be, in 2 (N-1) hops; so it is for
// chunks large enough that the hops' latency does not matter. Memory: `depth` segments of scratch.
//
// Four ranks; a b c d are the contributions of ranks 0 1 2 3, `>` leaves for the next rank, `*` is complete.
// Chunk i starts at rank i + 1 and collects one contribution a hop, until it comes to its owner, rank i:
//
//   chunk      0    1    2    3       0    1    2    3        0    1    2    3        0     1     2     3
//   rank 0     a    a    a   >a       a    a  >da    a        a >cda   da    a    *bcda   cda    da     a
//   rank 1    >b    b    b    b       b    b    b  >ab        b    b >dab   ab        b *cdab   dab    ab
//   rank 2     c   >c    c    c     >bc    c    c    c       bc    c    c >abc       bc     c *dabc   abc
//   rank 3     d    d   >d    d       d  >cd    d    d     >bcd   cd    d    d      bcd    cd     d *abcd
//             before hop 0            before hop 1            before hop 2            reduced and scattered
//
// Here the owner finishes its chunk (division of an average, postscale). Then the all-gather: each rank sends its
// complete chunk on, and passes on what it receives, until all have all; the owner too keeps what it sent:
//
//   rank 0   >*    .    .    .       *    .    .   >*        *    .   >*    *     *  *  *  *
//   rank 1    .   >*    .    .      >*    *    .    .        *    *    .   >*     *  *  *  *
//   rank 2    .    .   >*    .       .   >*    *    .       >*    *    *    .     *  *  *  *
//   rank 3    .    .    .   >*       .    .   >*    *        .   >*    *    *     *  *  *  *
//             before hop 3            before hop 4            before hop 5         done
//
// The hops are drawn in step, but nothing runs in step: each chunk is cut into segments, and a segment is reduced when
// it has arrived and sent on when it is reduced, while others of the same chunk are still on their way here.
#include "collectives/ring_walk.h"

namespace ringdp {
namespace {

class RingAllreduce : RingWalk {
 public:
  RingAllreduce(Ring ring, uint64_t count, Pipeline pipeline, Arithmetic arithmetic, bool in_place, Half half)
      : RingWalk(std::move(ring), {0, count}, pipeline, arithmetic.finish, half),
        prescale_(arithmetic.prescale),
        in_place_(in_place) {}

  Schedule schedule() {
    walk();
    return moves_.take(scratch());
  }

 private:
  // Only a prescaled input is copied; without prescale the first sends and the reductions read it where it lies.
  Own own(uint64_t at, uint64_t n) override {
    if (prescale_) return {in_output(at), moves_.copy(in_output(at), in_input(at), n, true, {}), true};
    return {in_input(at), kNone, in_place_};
  }
  void complete(uint64_t, uint64_t, int32_t) override {}

  const bool prescale_, in_place_;
};

}  // namespace

Schedule ring_allreduce(int ranks, int rank, uint64_t count, Pipeline pipeline, Arithmetic arithmetic, bool in_place) {
  check(pipeline);
  check(ranks, rank);
  if (ranks == 1) return reduce_alone(count, pipeline.segment, arithmetic, in_place);
  return RingAllreduce({ranks, rank}, count, pipeline, arithmetic, in_place, Half::both).schedule();
}

Schedule ring_half(Half half, int ranks, int rank, uint64_t count, Pipeline pipeline, Arithmetic arithmetic) {
  check(pipeline);
  check(ranks, rank);
  if (ranks == 1) return reduce_alone(count, pipeline.segment, arithmetic, true);
  return RingAllreduce({ranks, rank}, count, pipeline, arithmetic, true, half).schedule();
}

}  // namespace ringdp
