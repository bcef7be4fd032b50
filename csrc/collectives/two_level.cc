// All-reduce in two levels, for H hosts with p ranks each: the tensor is cut into p parts, one for each place in a host.
//
//   in      the ranks of a host sum part l at the one at place l                 shared memory (or messages)
//   ring    those at place l of their hosts all-reduce part l among themselves   H ranks, 2 (H-1)/H of n/p each
//   out     the one at place l hands part l to the others of its host            shared memory (or messages)
//
// Two hosts (AB and CD) with two ranks each; a b c d are the contributions, `*` is complete:
//
//   part       0    1            0    1             0    1            0    1
//   rank A     a    a    in     ab    .    ring     *    .    out     *    *       A and C are a ring, B and D another;
//   rank B     b    b            .   ab             .    *            *    *       the link between the hosts carries
//   rank C     c    c           cd    .             *    .            *    *       2 (H-1)/H of n, not more
//   rank D     d    d            .   cd             .    *            *    *
//
// Nothing runs in step: each part is cut into segments, a segment goes into the ring when the host has summed it, and out
// when the ring has. The segments go in in the order in which the ring needs them.
//
// *Direct*, where the outputs lie in shared memory and it is in place: a rank sums its part out of all outputs of the host,
// and writes the result to all. *Staged*: tensors that lie anywhere pass through areas, in turns as in
// shared_allreduce.cc; what goes in and what comes out are two lines of tokens, as the ring is between them. *Messages*,
// where there is no shared memory left: slower, but with the same bits, which the other hosts count on.
#include <unordered_map>

#include "collectives/host_sum.h"
#include "collectives/levels.h"
#include "collectives/ring_walk.h"

namespace ringdp {
namespace {

class TwoLevel : protected RingWalk {
 public:
  static uint64_t longest_segment(const Levels& levels, uint64_t count, Pipeline pipeline) {
    const uint64_t part = chunk_of(count, static_cast<int>(levels.mates.size()), 0).end;
    const uint64_t chunk = chunk_of(part, static_cast<int>(levels.ring.size()), 0).end;
    return std::max<uint64_t>(1, std::min(pipeline.segment, chunk));
  }

 protected:
  TwoLevel(const Levels& levels, uint64_t count, Pipeline pipeline, Arithmetic arithmetic, Half half)
      : RingWalk({static_cast<int>(levels.ring.size()), levels.host, levels.ring},
                 chunk_of(count, static_cast<int>(levels.mates.size()), levels.me), pipeline, arithmetic.finish, half),
        levels_(levels),
        mates_(static_cast<int>(levels.mates.size())),
        segment_(longest_segment(levels, count, pipeline)),
        sum_(moves_, mates_, levels.me, arithmetic.prescale, scratch(), segment_) {
    for (int place = 0; place < mates_; ++place) {
      const Chunk part = chunk_of(count, mates_, place);
      in_.emplace_back(), out_.emplace_back();
      for (int hop = 0; hop < ring_.ranks; ++hop) {
        append(in_.back(), cut_of(part, ring_.behind(hop + 1), pipeline.segment));
        append(out_.back(), cut_of(part, ring_.behind(hop), pipeline.segment));
      }
      turns_ = std::max<uint64_t>(turns_, in_.back().size());
    }
  }

  uint64_t scratch_end() const { return scratch() + HostSum::kScratch * segment_; }
  int behind(int distance) const { return (levels_.me + mates_ - distance) % mates_; }  // a place in the host

  const Levels& levels_;
  const int mates_;
  const uint64_t segment_;  // elements of the longest one
  // Of the part of each place: its segments in the order in which they go into the ring, and in which they come out.
  std::vector<std::vector<Cut::Segment>> in_, out_;
  uint64_t turns_ = 0;  // the most segments of a part
  HostSum sum_;

 private:
  Cut cut_of(Chunk part, int chunk, uint64_t segment) const {
    const Chunk c = chunk_of(part.end - part.begin, ring_.ranks, chunk);
    return {{part.begin + c.begin, part.begin + c.end}, segment};
  }
  static void append(std::vector<Cut::Segment>& to, const Cut& cut) {
    for (uint64_t i = 0; i < cut.size(); ++i) to.push_back(cut[i]);
  }
};

class Direct : TwoLevel {
 public:
  Direct(const Levels& levels, uint64_t count, Pipeline pipeline, Arithmetic arithmetic, Half half)
      : TwoLevel(levels, count, pipeline, arithmetic, half) {}

  Schedule schedule() {
    walk();
    moves_.await(1, {moves_.signal({handed_out_, half_ == Half::reduce_scatter ? summed_ : kNone})});
    return moves_.take(scratch_end());
  }

 private:
  Own own(uint64_t at, uint64_t n) override {
    const auto operand = [&](int place) {
      return place == levels_.me ? in_output(at) : in_output_of(levels_.mates[place], at);
    };
    summed_ = sum_.add(n, in_output(at), operand, summed_, kNone);
    return {in_output(at), summed_, true};
  }
  void complete(uint64_t at, uint64_t n, int32_t final) override {
    if (half_ == Half::reduce_scatter) return;
    for (int other = 1; other < mates_; ++other) {
      const Region to = in_output_of(levels_.mates[behind(other)], at);
      handed_out_ = moves_.copy(to, in_output(at), n, false, {handed_out_, final});
    }
  }
  int32_t summed_ = kNone, handed_out_ = kNone;
};

class Staged : TwoLevel {
 public:
  using TwoLevel::longest_segment;
  Staged(const Levels& levels, uint64_t count, Pipeline pipeline, Arithmetic arithmetic, Half half)
      : TwoLevel(levels, count, pipeline, arithmetic, half), prescale_(arithmetic.prescale) {}

  Schedule schedule() {
    walk();
    while (half_ != Half::all_gather && turn_in_ < turns_) take_in();
    if (half_ == Half::reduce_scatter) {  // the last pieces must be summed before this rank ends
      moves_.await(turns_ + 1, {moves_.signal({copied_, summed_}, kIn), all_in_}, kIn);
      return moves_.take(scratch_end(), area(levels_, segment_));
    }
    while (turn_out_ < turns_) hand_out(kNone);
    await_out(moves_.signal({taken_}, kOut));
    return moves_.take(scratch_end(), area(levels_, segment_));
  }
  static uint64_t area(const Levels& levels, uint64_t segment) {
    return (kTurnsIn * levels.mates.size() + kTurnsOut) * segment;
  }

 private:
  static constexpr uint8_t kIn = 0, kOut = 1;             // lines of tokens
  static constexpr uint64_t kTurnsIn = 2, kTurnsOut = 4;  // for which an area has room

  Own own(uint64_t at, uint64_t) override {
    take_in();
    return {in_output(at), summed_, true};
  }
  void complete(uint64_t, uint64_t, int32_t final) override {
    if (half_ != Half::reduce_scatter) hand_out(final);
  }

  // One turn: this rank's contributions to the next segments of the others' parts go into its area, theirs to its own part
  // are summed. Signal t+1 says that turn t is copied and turn t-1 is summed, so that the pieces of turn t-1 are free.
  void take_in() {
    const uint64_t turn = turn_in_++;
    for (int other = 1; other < mates_; ++other) {
      const int place = behind(other);
      if (turn >= in_[place].size()) continue;
      const auto [at, n] = in_[place][turn];
      copied_ = moves_.copy(piece_in(levels_.me, turn, place), in_input(at), n, prescale_, {copied_, all_in_});
    }
    const int32_t signal = moves_.signal({copied_, summed_}, kIn);
    all_in_ = moves_.await(turn + 1, {signal, all_in_}, kIn);
    if (turn >= in_[levels_.me].size()) return;
    const auto [at, n] = in_[levels_.me][turn];
    const auto operand = [&, at = at](int place) {
      return place == levels_.me ? in_input(at) : piece_in(place, turn, levels_.me);
    };
    summed_ = sum_.add(n, in_output(at), operand, summed_, all_in_);
  }

  // One turn: the next segment of this rank's part, complete after `final`, goes into its area; the others' are taken. Signal t+1
  // says that turn t is there and turn t-1 is taken.
  void hand_out(int32_t final) {
    const uint64_t turn = turn_out_++;
    if (turn < out_[levels_.me].size()) {
      const auto [at, n] = out_[levels_.me][turn];
      const int32_t free = turn + 2 > kTurnsOut ? awaits_out_[turn + 1 - kTurnsOut] : kNone;
      published_ = moves_.copy(piece_out(levels_.me, turn), in_output(at), n, false, {published_, final, free});
    }
    await_out(moves_.signal({published_, taken_}, kOut));
    for (int other = 1; other < mates_; ++other) {
      const int place = behind(other);
      if (turn >= out_[place].size()) continue;
      const auto [at, n] = out_[place][turn];
      taken_ = moves_.copy(in_output(at), piece_out(place, turn), n, false, {taken_, awaits_out_.back()});
    }
  }
  void await_out(int32_t signal) {
    const int32_t before = awaits_out_.empty() ? kNone : awaits_out_.back();
    awaits_out_.push_back(moves_.await(awaits_out_.size() + 1, {signal, before}, kOut));
  }

  Region piece_in(int place, uint64_t turn, int part) const {
    return in_area_of(levels_.mates[place], (turn % kTurnsIn * mates_ + part) * segment_);
  }
  Region piece_out(int place, uint64_t turn) const {
    return in_area_of(levels_.mates[place], (kTurnsIn * mates_ + turn % kTurnsOut) * segment_);
  }

  const bool prescale_;
  uint64_t turn_in_ = 0, turn_out_ = 0;
  int32_t copied_ = kNone, summed_ = kNone, all_in_ = kNone;
  int32_t published_ = kNone, taken_ = kNone;
  std::vector<int32_t> awaits_out_;
};

// All that goes in is listed before the ring, and all that comes out after it: so both ends of a channel list alike.
class Messages : TwoLevel {
 public:
  Messages(const Levels& levels, uint64_t count, Pipeline pipeline, Arithmetic arithmetic, Half half)
      : TwoLevel(levels, count, pipeline, arithmetic, half), window_(pipeline.depth) {}

  Schedule schedule() {
    for (uint64_t turn = 0; turn < turns_ && half_ != Half::all_gather; ++turn) take_in(turn);
    walk();
    for (uint64_t turn = 0; turn < turns_ && half_ != Half::reduce_scatter; ++turn) hand_out(turn);
    return moves_.take(scratch_end() + kTurns * mates_ * segment_);
  }

 private:
  static constexpr uint64_t kTurns = 2;  // for which the scratch has room

  Own own(uint64_t at, uint64_t) override { return {in_output(at), summed_.at(at), true}; }
  void complete(uint64_t at, uint64_t, int32_t final) override { final_[at] = final; }

  void take_in(uint64_t turn) {
    for (int other = 1; other < mates_; ++other) {
      const int place = behind(other);
      if (turn >= in_[place].size()) continue;
      const auto [at, n] = in_[place][turn];
      sent_[at] = moves_.send(levels_.mates[place], in_input(at), n, {});
    }
    if (turn >= in_[levels_.me].size()) return;
    const auto [at, n] = in_[levels_.me][turn];
    int32_t received = kNone;
    for (int other = 1; other < mates_; ++other) {
      const int place = behind(other);
      received = moves_.receive(levels_.mates[place], piece(turn, place), n, {freed_.oldest(), received});
    }
    const auto operand = [&, at = at](int place) { return place == levels_.me ? in_input(at) : piece(turn, place); };
    last_sum_ = summed_[at] = sum_.add(n, in_output(at), operand, last_sum_, received);
    freed_.add(last_sum_);
  }

  void hand_out(uint64_t turn) {
    for (int other = 1; other < mates_; ++other) {
      const int place = behind(other);
      if (turn < out_[levels_.me].size()) {
        const auto [at, n] = out_[levels_.me][turn];
        moves_.send(levels_.mates[place], in_output(at), n, {final_.at(at)});
      }
      if (turn < out_[place].size()) {
        const auto [at, n] = out_[place][turn];
        const int32_t left = half_ == Half::both ? sent_.at(at) : kNone;
        window_.add(moves_.receive(levels_.mates[place], in_output(at), n, {window_.oldest(), left}));
      }
    }
  }

  Region piece(uint64_t turn, int place) const {
    return in_scratch(scratch_end() + (turn % kTurns * mates_ + place) * segment_);
  }

  Turns window_, freed_{kTurns};
  int32_t last_sum_ = kNone;
  std::unordered_map<uint64_t, int32_t> sent_, summed_, final_;  // by the segment's beginning
};

}  // namespace

Schedule two_level_direct(const Levels& levels, uint64_t count, Pipeline pipeline, Arithmetic arithmetic, Half half) {
  check(pipeline);
  return Direct(levels, count, pipeline, arithmetic, half).schedule();
}

Schedule two_level_staged(const Levels& levels, uint64_t count, Pipeline pipeline, Arithmetic arithmetic, Half half) {
  check(pipeline);
  return Staged(levels, count, pipeline, arithmetic, half).schedule();
}

Schedule two_level_messages(const Levels& levels, uint64_t count, Pipeline pipeline, Arithmetic arithmetic, Half half) {
  check(pipeline);
  return Messages(levels, count, pipeline, arithmetic, half).schedule();
}

uint64_t two_level_area(const Levels& levels, uint64_t count, Pipeline pipeline) {
  return Staged::area(levels, Staged::longest_segment(levels, count, pipeline));
}

}  // namespace ringdp
