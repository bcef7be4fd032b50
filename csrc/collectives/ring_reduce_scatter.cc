// Reduce-scatter by ring: the first half of ring_allreduce.cc (see the drawing there), with chunks of given sizes and
// an input that stays as it is. Chunk i starts at rank i + 1 and comes, complete, to its owner i.
//
// Partial sums live in scratch slots: a segment is received into a slot, the rank's own contribution is added to it
// there, and it is sent on from there. So a slot is free only when the next rank has taken its contents, and that rank
// needs a free slot first: were all segments of a chunk sent on in one go, a chunk of more segments than slots would
// deadlock the ring. Hence *blocks*: `depth` segments of every chunk go all the way round before those of the next
// block start (nothing waits for that as a whole; the blocks follow each other like the hops do). With 2 depth slots a
// receive waits for a slot whose contents left two hops earlier, so what it waits for always belongs to an earlier hop
// or block, and there is no cycle.
//
// Memory: 2 depth segments of scratch; 3 depth if the input must be scaled, which is done in `depth` more slots.
#include "collectives/ring.h"

namespace ringdp {
namespace {

class RingReduceScatter {
 public:
  RingReduceScatter(Ring ring, const std::vector<uint64_t>& counts, Pipeline pipeline, Arithmetic arithmetic)
      : ring_(ring),
        depth_(pipeline.depth),
        chunks_(chunks_of(counts)),
        segment_(pipeline.segment),
        slot_(std::min(pipeline.segment, longest(chunks_))),
        segments_(Cut({0, longest(chunks_)}, segment_).size()),
        sum_slots_(std::min(2 * depth_, (ring.ranks - 1) * segments_)),
        scaled_slots_(arithmetic.prescale ? std::min(depth_, ring.ranks * segments_) : 0),
        arithmetic_(arithmetic),
        sums_(0, sum_slots_, slot_),
        scaled_(sum_slots_ * slot_, scaled_slots_, slot_),
        window_(depth_) {}

  Schedule schedule() {
    for (uint64_t first = 0; first < segments_; first += depth_) {
      send_first(first);
      for (int hop = 0; hop < ring_.ranks - 1; ++hop) reduce_and_send_on(first, hop);
    }
    return moves_.take((sum_slots_ + scaled_slots_) * slot_);
  }

 private:
  struct Own {
    Region region;
    int32_t ready;
  };

  void send_first(uint64_t first) {
    const Cut cut(chunks_[ring_.behind(1)], segment_);
    for (uint64_t i = first; i < end_of_block(first, cut); ++i) {
      const auto [at, n] = cut[i];
      const Own own = contribution(at, n);
      const int32_t sent = moves_.send(ring_.next(), own.region, n, {own.ready});
      if (arithmetic_.prescale) scaled_.read_by(sent);
    }
  }

  void reduce_and_send_on(uint64_t first, int hop) {
    const int chunk = ring_.behind(hop + 2);
    const bool mine = chunk == ring_.rank;
    const Cut cut(chunks_[chunk], segment_);
    for (uint64_t i = first; i < end_of_block(first, cut); ++i) {
      const auto [at, n] = cut[i];
      const Region slot = sums_.region(), sum = mine ? in_output(at - chunks_[chunk].begin) : slot;
      const Own own = contribution(at, n);
      const int32_t received = moves_.receive(ring_.previous(), slot, n, {window_.oldest(), sums_.freed_by()});
      const int32_t reduced = moves_.reduce(sum, own.region, slot, n, {received, own.ready});
      window_.add(received);
      if (arithmetic_.prescale) scaled_.read_by(reduced);
      sums_.read_by(mine ? reduced : moves_.send(ring_.next(), slot, n, {reduced}));
      if (mine && arithmetic_.finish) moves_.finish(sum, sum, n, {reduced});
    }
  }

  // This rank's own elements: where they lie in the input, or scaled into a slot, which the caller must read.
  Own contribution(uint64_t at, uint64_t n) {
    if (!arithmetic_.prescale) return {in_input(at), kNone};
    const Region slot = scaled_.region();
    return {slot, moves_.copy(slot, in_input(at), n, true, {scaled_.freed_by()})};
  }

  uint64_t end_of_block(uint64_t first, const Cut& cut) const { return std::min(first + depth_, cut.size()); }

  const Ring ring_;
  const uint64_t depth_;
  const std::vector<Chunk> chunks_;
  const uint64_t segment_, slot_;  // elements
  const uint64_t segments_;        // of the longest chunk
  const uint64_t sum_slots_, scaled_slots_;
  const Arithmetic arithmetic_;
  Slots sums_, scaled_;
  Turns window_;  // the last `depth` receives
  Moves moves_;
};

}  // namespace

Schedule ring_reduce_scatter(int rank, const std::vector<uint64_t>& counts, Pipeline pipeline, Arithmetic arithmetic) {
  const int ranks = static_cast<int>(counts.size());
  check(pipeline);
  check(ranks, rank);
  if (ranks == 1) return reduce_alone(counts[0], pipeline.segment, arithmetic, false);
  return RingReduceScatter({ranks, rank}, counts, pipeline, arithmetic).schedule();
}

}  // namespace ringdp
