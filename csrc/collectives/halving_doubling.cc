// All-reduce by recursive halving and doubling: a reduce-scatter in which the exchanges get smaller (a half of the
// tensor, a quarter, …), then an all-gather that goes the same way back. Every rank sends 2 (N-1)/N of the tensor, as
// in the ring, but in 2 log2 N exchanges instead of 2 (N-1). Memory: `depth` segments of scratch.
//
// Four ranks; a b c d are their contributions to each quarter of the tensor, `.` is given away, `*` is complete. In
// exchange k the partners' numbers differ in bit k, and the one whose bit is 0 keeps the first half of what both have:
//
//   rank 0    a  a  a  a        ab ab .  .        *  .  .  .         *  *  .  .       *  *  *  *
//   rank 1    b  b  b  b        .  .  ab ab       .  .  *  .         .  .  *  *       *  *  *  *
//   rank 2    c  c  c  c        cd cd .  .        .  *  .  .         *  *  .  .       *  *  *  *
//   rank 3    d  d  d  d        .  .  cd cd       .  .  .  *         .  .  *  *       *  *  *  *
//               0↔1 2↔3 halves    0↔2 1↔3 quarters  0↔2 1↔3 quarters  0↔1 2↔3 halves
//
// The largest parts go between neighbouring ranks, which often share a host. The lower partner's sum stands on the left
// of each addition, so every element is added up as in recursive_doubling.cc: the two algorithms give the same bits.
// Each part is finished by the one rank that completes it. With another number of ranks than a power of two the first
// ones go in pairs (power.h), and the pairs' whole tensors besides: then it is for medium sizes only.
//
// Segments are cut at multiples of the segment's length from the start of the *tensor*, so a range of it consists of
// *pieces*: what of each such cell lies in the range. A piece of a range is part of one piece of any larger range.
//
// R. Rabenseifner, "Optimization of collective reduction operations", ICCS 2004, LNCS 3036, section 2; also Thakur,
// Rabenseifner & Gropp, IJHPCA 19 (2005), section 4.5.
#include "collectives/power.h"
#include "collectives/ring.h"

namespace ringdp {
namespace {

class HalvingDoubling {
 public:
  HalvingDoubling(PowerOfTwo power, int rank, uint64_t count, Pipeline pipeline, Arithmetic arithmetic, bool in_place)
      : power_(power),
        rank_(rank),
        tensor_{0, count},
        cell_(pipeline.segment),
        cells_(Cut(tensor_, cell_).size()),
        arithmetic_(arithmetic),
        in_output_(in_place || arithmetic.prescale),
        slot_(std::min(pipeline.segment, longest_receive())),
        scratch_slots_(std::min<uint64_t>(pipeline.depth, receives())),
        ready_(cells_, kNone),
        gathered_(cells_, kNone),
        sent_(power.levels(), std::vector<int32_t>(cells_, kNone)),
        slots_(0, scratch_slots_, slot_),
        window_(pipeline.depth) {}

  Schedule schedule() {
    scale();
    if (power_.hands_over()) {
      hand_over();
    } else {
      if (power_.stands_in()) take_over();
      halve_all();
      double_up_all();
      if (power_.stands_in()) hand_back();
    }
    return moves_.take(scratch_slots_ * slot_);
  }

  // Of a power of two of ranks.
  Schedule half(Half which) {
    if (which == Half::reduce_scatter) {
      scale();
      halve_all();
      return moves_.take(scratch_slots_ * slot_);
    }
    in_output_ = true;
    double_up_all();
    return moves_.take();
  }
  Chunk own() const { return power_.levels() == 0 ? tensor_ : kept(power_.levels() - 1); }

 private:
  struct Piece {
    uint64_t cell, at, count;
  };

  void scale() {
    if (!arithmetic_.prescale) return;
    for (const auto [cell, at, n] : pieces(tensor_))
      ready_[cell] = moves_.copy(in_output(at), in_input(at), n, true, {});
  }

  void halve_all() {
    for (int level = 0; level < power_.levels(); ++level) halve(level);
    finish();
  }
  void double_up_all() {
    for (int level = power_.levels() - 1; level >= 0; --level) double_up(level);
  }

  void hand_over() {
    for (const auto [cell, at, n] : pieces(tensor_)) {
      const int32_t sent = moves_.send(rank_ + 1, mine(at), n, {ready_[cell]});
      ready_[cell] = in_output_ ? sent : kNone;
    }
    for (const auto [cell, at, n] : pieces(tensor_))
      window_.add(moves_.receive(rank_ + 1, in_output(at), n, {window_.oldest(), ready_[cell]}));
  }

  void take_over() {
    for (const Piece& piece : pieces(tensor_)) add(piece, rank_ - 1, false);
    in_output_ = true;
  }

  // Gives one half of the range away and adds the partner's sum to the other.
  void halve(int level) {
    const int partner = power_.partner(level);
    for (const auto [cell, at, n] : pieces(given(level))) {
      const int32_t sent = moves_.send(partner, mine(at), n, {ready_[cell]});
      sent_[level][cell] = in_output_ ? sent : kNone;
    }
    for (const Piece& piece : pieces(kept(level))) add(piece, partner, power_.is_lower(level));
    in_output_ = true;
  }

  void add(const Piece& piece, int from, bool mine_is_left) {
    const auto [cell, at, n] = piece;
    const Region slot = slots_.region(), own = mine(at);
    const int32_t received = moves_.receive(from, slot, n, {slots_.freed_by()});
    ready_[cell] =
        moves_.reduce(in_output(at), mine_is_left ? own : slot, mine_is_left ? slot : own, n, {received, ready_[cell]});
    slots_.read_by(ready_[cell]);
    window_.add(received);
  }

  // Now this rank's own part is complete, and it is all that is.
  void finish() {
    std::vector<int32_t> own(cells_, kNone);
    for (const auto [cell, at, n] : pieces(this->own()))
      own[cell] = arithmetic_.finish ? moves_.finish(in_output(at), in_output(at), n, {ready_[cell]}) : ready_[cell];
    ready_ = std::move(own);
  }

  // Sends all that is complete here, and receives the half that was given away at this level. A cell of which several
  // pieces come, one a level, gets them in turn, so that its latest stands for all.
  void double_up(int level) {
    const int partner = power_.partner(level);
    for (const auto [cell, at, n] : pieces(kept(level)))
      moves_.send(partner, in_output(at), n, {ready_[cell], gathered_[cell]});
    for (const auto [cell, at, n] : pieces(given(level))) {
      gathered_[cell] =
          moves_.receive(partner, in_output(at), n, {window_.oldest(), sent_[level][cell], gathered_[cell]});
      window_.add(gathered_[cell]);
    }
  }

  void hand_back() {
    for (const auto [cell, at, n] : pieces(tensor_))
      moves_.send(rank_ - 1, in_output(at), n, {ready_[cell], gathered_[cell]});
  }

  // The two halves of what is left after `level` exchanges. Lengths of halves differ by at most one.
  Chunk half_at(int level, bool lower) const {
    Chunk range = level == 0 ? tensor_ : kept(level - 1);
    const uint64_t middle = range.begin + (range.end - range.begin + 1) / 2;
    return lower ? Chunk{range.begin, middle} : Chunk{middle, range.end};
  }
  Chunk kept(int level) const { return half_at(level, power_.is_lower(level)); }
  Chunk given(int level) const { return half_at(level, !power_.is_lower(level)); }

  std::vector<Piece> pieces(Chunk range) const {
    std::vector<Piece> all;
    for (uint64_t at = range.begin; at < range.end;) {
      const uint64_t cell = at / cell_, end = range.end - cell * cell_ > cell_ ? (cell + 1) * cell_ : range.end;
      all.push_back({cell, at, end - at});
      at = end;
    }
    return all;
  }

  uint64_t longest_receive() const {
    if (power_.hands_over()) return 0;
    const Chunk range = power_.stands_in() ? tensor_ : kept(0);
    return range.end - range.begin;
  }
  uint64_t receives() const {  // into scratch
    if (power_.hands_over()) return 0;
    uint64_t n = power_.stands_in() ? cells_ : 0;
    for (int level = 0; level < power_.levels(); ++level) n += pieces(kept(level)).size();
    return n;
  }
  Region mine(uint64_t at) const { return in_output_ ? in_output(at) : in_input(at); }

  const PowerOfTwo power_;
  const int rank_;
  const Chunk tensor_;
  const uint64_t cell_, cells_;
  const Arithmetic arithmetic_;
  bool in_output_;  // this rank's sums lie there; until the first addition perhaps in the input
  const uint64_t slot_, scratch_slots_;
  std::vector<int32_t> ready_, gathered_;   // by cell: the moves after which its pieces may be read
  std::vector<std::vector<int32_t>> sent_;  // by level and cell: the send of what is received there later
  Slots slots_;
  Turns window_;  // the last `depth` receives
  Moves moves_;
};

}  // namespace

Schedule halving_doubling(int ranks, int rank, uint64_t count, Pipeline pipeline, Arithmetic arithmetic,
                          bool in_place) {
  check(pipeline);
  check(ranks, rank);
  if (ranks == 1) return reduce_alone(count, pipeline.segment, arithmetic, in_place);
  return HalvingDoubling({ranks, rank}, rank, count, pipeline, arithmetic, in_place).schedule();
}

Schedule halving_doubling_half(Half half, int ranks, int rank, uint64_t count, Pipeline pipeline,
                               Arithmetic arithmetic) {
  check(pipeline);
  check(ranks, rank);
  if (ranks & (ranks - 1)) fail(ErrorKind::usage, ranks, " ranks: only a power of two halves and doubles by halves");
  if (ranks == 1) return reduce_alone(count, pipeline.segment, arithmetic, true);
  return HalvingDoubling({ranks, rank}, rank, count, pipeline, arithmetic, true).half(half);
}

Chunk halving_doubling_chunk(int ranks, int rank, uint64_t count) {
  return HalvingDoubling({ranks, rank}, rank, count, {1, 1}, {}, true).own();
}

}  // namespace ringdp
