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
#include "collectives/ring.h"

namespace ringdp {
namespace {

class RingAllreduce {
 public:
  RingAllreduce(Ring ring, uint64_t count, Pipeline pipeline, Arithmetic arithmetic, bool in_place)
      : ring_(ring),
        count_(count),
        pipeline_(pipeline),
        arithmetic_(arithmetic),
        slot_(std::min(pipeline.segment, longest_chunk())),
        scratch_slots_(std::min<uint64_t>(pipeline.depth, (ring.ranks - 1) * cut_of(0).size())),
        input_is_in_output_(in_place || arithmetic.prescale),
        sent_(ring.ranks),
        slots_(0, scratch_slots_, slot_),
        window_(pipeline.depth) {}

  Schedule schedule() {
    send_first();
    for (int hop = 0; hop < ring_.ranks - 1; ++hop) reduce_and_send_on(hop);
    for (int hop = 0; hop < ring_.ranks - 1; ++hop) gather_and_send_on(hop);
    return moves_.take(scratch_slots_ * slot_);
  }

 private:
  void send_first() {
    const int chunk = ring_.behind(1);
    const Cut cut = cut_of(chunk);
    for (uint64_t i = 0; i < cut.size(); ++i) {
      const auto [at, n] = cut[i];
      const int32_t sent = moves_.send(ring_.next(), input(at), n, {scaled(at, n)});
      sent_[chunk].push_back(input_is_in_output_ ? sent : kNone);
    }
  }

  void reduce_and_send_on(int hop) {
    const int chunk = ring_.behind(hop + 2);
    const bool mine = chunk == ring_.rank;
    const Cut cut = cut_of(chunk);
    for (uint64_t i = 0; i < cut.size(); ++i) {
      const auto [at, n] = cut[i];
      const Region slot = slots_.region(), output = in_output(at);
      const int32_t own = scaled(at, n);
      const int32_t received = moves_.receive(ring_.previous(), slot, n, {slots_.freed_by()});
      int32_t ready = moves_.reduce(output, input(at), slot, n, {received, own});
      window_.add(received);
      slots_.read_by(ready);
      if (mine && arithmetic_.finish) ready = moves_.finish(output, output, n, {ready});
      const int32_t sent = moves_.send(ring_.next(), output, n, {ready});
      sent_[chunk].push_back(sent);
    }
  }

  void gather_and_send_on(int hop) {
    const int chunk = ring_.behind(hop + 1);
    const Cut cut = cut_of(chunk);
    for (uint64_t i = 0; i < cut.size(); ++i) {
      const auto [at, n] = cut[i];
      // What the output held of this segment, a partial sum, must have left before it is overwritten.
      const int32_t received = moves_.receive(ring_.previous(), in_output(at), n, {window_.oldest(), sent_[chunk][i]});
      window_.add(received);
      if (hop < ring_.ranks - 2) moves_.send(ring_.next(), in_output(at), n, {received});
    }
  }

  // Only a prescaled input is copied; without prescale the first sends and the reductions read it where it lies.
  int32_t scaled(uint64_t at, uint64_t n) {
    return arithmetic_.prescale ? moves_.copy(in_output(at), in_input(at), n, true, {}) : kNone;
  }
  Region input(uint64_t at) const { return arithmetic_.prescale ? in_output(at) : in_input(at); }

  Cut cut_of(int chunk) const { return {chunk_of(count_, ring_.ranks, chunk), pipeline_.segment}; }
  uint64_t longest_chunk() const { return chunk_of(count_, ring_.ranks, 0).end; }  // no chunk is longer than chunk 0

  const Ring ring_;
  const uint64_t count_;
  const Pipeline pipeline_;
  const Arithmetic arithmetic_;
  const uint64_t slot_;  // elements
  const uint64_t scratch_slots_;
  const bool input_is_in_output_;           // so that the first sends read the output
  std::vector<std::vector<int32_t>> sent_;  // by chunk and segment: the send of a partial sum out of the output
  Slots slots_;
  Turns window_;  // the last `depth` receives
  Moves moves_;
};

}  // namespace

Schedule ring_allreduce(int ranks, int rank, uint64_t count, Pipeline pipeline, Arithmetic arithmetic, bool in_place) {
  check(pipeline);
  check(ranks, rank);
  if (ranks == 1) return reduce_alone(count, pipeline.segment, arithmetic, in_place);
  return RingAllreduce({ranks, rank}, count, pipeline, arithmetic, in_place).schedule();
}

}  // namespace ringdp
