// All-reduce by recursive doubling: in exchange k each rank swaps its whole sum with the rank whose number differs in
// bit k, and both add the two. log2 N exchanges, the fewest there can be, each of the whole tensor: for tensors whose
// time is mostly latency. Memory: `depth` segments of scratch.
//
// Four ranks; a b c d are their contributions:
//
//   rank 0    a         (a b)         ((a b)(c d))
//   rank 1    b         (a b)         ((a b)(c d))
//   rank 2    c         (c d)         ((a b)(c d))
//   rank 3    d         (c d)         ((a b)(c d))
//              0↔1 2↔3         0↔2 1↔3
//
// Both partners add with the lower one's sum on the left, so they do the same addition, and all ranks end with the same
// bits, whatever the operation does with its operands. Each finishes its own copy. With another number of ranks than a
// power of two the first ones go in pairs (power.h), two exchanges more.
//
// R. Rabenseifner, "Optimization of collective reduction operations", ICCS 2004, LNCS 3036; Thakur, Rabenseifner &
// Gropp, "Optimization of collective communication operations in MPICH", IJHPCA 19 (2005), section 4.5.
#include "collectives/partners.h"
#include "collectives/power.h"
#include "collectives/ring.h"

namespace ringdp {
namespace {

class RecursiveDoubling {
 public:
  RecursiveDoubling(PowerOfTwo power, int rank, uint64_t count, Pipeline pipeline, Arithmetic arithmetic, bool in_place)
      : power_(power),
        rank_(rank),
        cut_({0, count}, pipeline.segment),
        arithmetic_(arithmetic),
        in_output_(in_place || arithmetic.prescale),
        slot_(std::min(pipeline.segment, count)),
        scratch_slots_(std::min<uint64_t>(pipeline.depth, receives() * cut_.size())),
        ready_(cut_.size(), kNone),
        slots_(0, scratch_slots_, slot_),
        window_(pipeline.depth) {}

  Schedule schedule() {
    scale();
    if (power_.hands_over()) {
      hand_over();
    } else {
      if (power_.stands_in()) take_over();
      for (int level = 0; level < power_.levels(); ++level) exchange(level);
      finish();
      if (power_.stands_in()) hand_back();
    }
    return moves_.take(scratch_slots_ * slot_);
  }

 private:
  void scale() {
    if (!arithmetic_.prescale) return;
    for (uint64_t i = 0; i < cut_.size(); ++i) {
      const auto [at, n] = cut_[i];
      ready_[i] = moves_.copy(in_output(at), in_input(at), n, true, {});
    }
  }

  // The even one of a pair: its contribution goes, and the result comes where it was.
  void hand_over() {
    for (uint64_t i = 0; i < cut_.size(); ++i) {
      const auto [at, n] = cut_[i];
      const int32_t sent = moves_.send(rank_ + 1, mine(at), n, {ready_[i]});
      ready_[i] = in_output_ ? sent : kNone;
    }
    for (uint64_t i = 0; i < cut_.size(); ++i) {
      const auto [at, n] = cut_[i];
      window_.add(moves_.receive(rank_ + 1, in_output(at), n, {window_.oldest(), ready_[i]}));
    }
  }

  // The odd one: it stands for both from here on.
  void take_over() {
    for (uint64_t i = 0; i < cut_.size(); ++i) add(i, rank_ - 1, false, kNone);
    in_output_ = true;
  }

  void exchange(int level) {
    const int partner = power_.partner(level);
    for (uint64_t i = 0; i < cut_.size(); ++i) {
      const auto [at, n] = cut_[i];
      const int32_t sent = moves_.send(partner, mine(at), n, {ready_[i]});
      // What is being sent must not be overwritten; the input, in the first exchange, is not.
      add(i, partner, power_.is_lower(level), in_output_ ? sent : kNone);
    }
    in_output_ = true;
  }

  // Receives segment i of another rank's sum and adds it to this rank's, the lower one's on the left.
  void add(uint64_t i, int from, bool mine_is_left, int32_t sent) {
    const auto [at, n] = cut_[i];
    const Region slot = slots_.region(), own = mine(at);
    const int32_t received = moves_.receive(from, slot, n, {slots_.freed_by()});
    const int32_t own_is_ready = sent == kNone ? ready_[i] : sent;  // it was sent after it was ready
    ready_[i] =
        moves_.reduce(in_output(at), mine_is_left ? own : slot, mine_is_left ? slot : own, n, {received, own_is_ready});
    slots_.read_by(ready_[i]);
    window_.add(received);
  }

  void finish() {
    if (!arithmetic_.finish) return;
    for (uint64_t i = 0; i < cut_.size(); ++i) {
      const auto [at, n] = cut_[i];
      ready_[i] = moves_.finish(in_output(at), in_output(at), n, {ready_[i]});
    }
  }

  void hand_back() {
    for (uint64_t i = 0; i < cut_.size(); ++i) {
      const auto [at, n] = cut_[i];
      moves_.send(rank_ - 1, in_output(at), n, {ready_[i]});
    }
  }

  // Where this rank's sum lies: in the input until the first addition, if it lies there to begin with.
  Region mine(uint64_t at) const { return in_output_ ? in_output(at) : in_input(at); }
  uint64_t receives() const { return power_.hands_over() ? 0 : power_.levels() + power_.stands_in(); }  // a segment

  const PowerOfTwo power_;
  const int rank_;
  const Cut cut_;
  const Arithmetic arithmetic_;
  bool in_output_;
  const uint64_t slot_;  // elements
  const uint64_t scratch_slots_;
  std::vector<int32_t> ready_;  // by segment: the move after which this rank's sum may be read and written
  Slots slots_;
  Turns window_;  // the last `depth` receives
  Moves moves_;
};

}  // namespace

std::vector<int> power_of_two_partners(int ranks, int rank) {
  const PowerOfTwo power(ranks, rank);
  if (power.hands_over()) return {rank + 1};
  std::vector<int> partners;
  if (power.stands_in()) partners.push_back(rank - 1);
  for (int level = 0; level < power.levels(); ++level) partners.push_back(power.partner(level));
  return partners;
}

Schedule recursive_doubling(int ranks, int rank, uint64_t count, Pipeline pipeline, Arithmetic arithmetic,
                            bool in_place) {
  check(pipeline);
  check(ranks, rank);
  if (ranks == 1) return reduce_alone(count, pipeline.segment, arithmetic, in_place);
  return RecursiveDoubling({ranks, rank}, rank, count, pipeline, arithmetic, in_place).schedule();
}

}  // namespace ringdp
