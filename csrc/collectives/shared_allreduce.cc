// All-reduce of ranks that share memory: each reads the others' memory where it lies. Rank r sums chunk r.
//
// Four ranks; a b c d are the contributions of ranks 0 1 2 3, `*` is complete. In place, outputs in shared memory:
//
//   chunk      0    1    2    3               0    1    2    3
//   rank 0     a    a    a    a    rank 0     *    .    .    .   rank 0 writes its sum into chunk 0 of all,
//   rank 1     b    b    b    b      sums     *    .    .    .   rank 1 meanwhile into chunk 1 of all, …
//   rank 2     c    c    c    c    chunk 0    *    .    .    .
//   rank 3     d    d    d    d      of all   *    .    .    .
//
// Nobody but rank r reads or writes chunk r of any output, so there is nothing to wait for but the end. The memory traffic
// of a rank is the least there can be: each of its chunk's N parts is read and written once.
//
// Tensors that lie anywhere else are staged: each rank has an area of a few *turns*; a turn has a piece for each chunk.
// In turn t a rank copies segment t of all chunks but its own into its area; sums segment t-1 of its own chunk, out of the
// others' areas; and takes segment t-2 of all other chunks out of their owners' areas:
//
//   turn       0        1             2                  3
//              copy 0   copy 1        copy 2             …
//                       sum 0         sum 1
//                                     take 0
//   signal     1        2             3
//
// Of its own chunk nothing is staged but the sum, which the others take. A segment is small, so that areas stay in the
// caches: a tensor goes through main memory once on its way in and once on its way out.
//
// Of the halves alone, the first ends with the sums, the second begins with the own chunk: neither has the middle turn of the other.
//
// The sums are made in the order of the ring, i+1, i+2, …, i for chunk i (ring_allreduce.cc), whatever the segment.
#include "collectives/host_sum.h"

namespace ringdp {
namespace {

class SharedAllreduce {
 public:
  SharedAllreduce(int ranks, int rank, uint64_t count, Pipeline pipeline, Arithmetic arithmetic)
      : ranks_(ranks),
        rank_(rank),
        count_(count),
        arithmetic_(arithmetic),
        piece_(std::max<uint64_t>(1, std::min(pipeline.segment, chunk_of(count, ranks, 0).end))),
        sum_(moves_, ranks, rank, arithmetic.prescale, 0, piece_) {
    check(ranks, rank);
    check(pipeline);
  }

  Schedule direct(Half half) {
    const Cut mine = cut_of(rank_);
    int32_t done = kNone;
    for (uint64_t i = 0; i < mine.size(); ++i) {
      const auto [at, n] = mine[i];
      if (half != Half::all_gather)
        done = sum(n, in_output(at), [at = at](int rank) { return in_output_of(rank, at); }, done, kNone);
      for (int other = 1; other < ranks_ && half != Half::reduce_scatter; ++other)
        done = moves_.copy(in_output_of(behind(other), at), in_output(at), n, false, {done});
    }
    moves_.await(1, {moves_.signal({done})});
    return moves_.take(half == Half::all_gather ? 0 : HostSum::kScratch * piece_);
  }

  Schedule staged(Half half) {
    if (half == Half::reduce_scatter) return staged_sums();
    if (half == Half::all_gather) return staged_gather();
    const uint64_t turns = cut_of(0).size();  // chunk 0 is the longest
    int32_t copied = kNone, summed = kNone, taken = kNone;
    int32_t before = kNone, now = kNone;  // the awaits of the last turn but one, and of the last
    for (uint64_t t = 0; t < turns + 2; ++t) {
      if (t < turns) copied = copy_in(t, copied, before);
      if (t >= 1 && t - 1 < turns) summed = publish(t - 1, sum_own(t - 1, summed, now), kNone);
      if (t >= 2) taken = take_out(t - 2, taken, now);
      end_turn(t, {copied, summed, taken}, before, now);
    }
    return moves_.take(HostSum::kScratch * piece_, area());
  }
  uint64_t area() const { return kTurns * ranks_ * piece_; }

 private:
  // The first half: what is summed is not for the others.
  Schedule staged_sums() {
    const uint64_t turns = cut_of(0).size();
    int32_t copied = kNone, summed = kNone, before = kNone, now = kNone;
    for (uint64_t t = 0; t < turns + 1; ++t) {
      if (t < turns) copied = copy_in(t, copied, before);
      if (t >= 1) summed = sum_own(t - 1, summed, now);
      end_turn(t, {copied, summed}, before, now);
    }
    return moves_.take(HostSum::kScratch * piece_, area());
  }

  // The second: nothing is summed.
  Schedule staged_gather() {
    const uint64_t turns = cut_of(0).size();
    int32_t published = kNone, taken = kNone, before = kNone, now = kNone;
    for (uint64_t t = 0; t < turns + 1; ++t) {
      if (t < turns) published = publish(t, published, before);
      if (t >= 1) taken = take_out(t - 1, taken, now);
      end_turn(t, {published, taken}, before, now);
    }
    return moves_.take(0, area());
  }

  // Says that this turn's moves are done, and waits for the others' as well.
  void end_turn(uint64_t turn, Moves::After done, int32_t& before, int32_t& now) {
    moves_.signal(done);
    before = now;
    now = moves_.await(turn + 1, {now});
  }

  static constexpr uint64_t kTurns = 3;  // pieces of turn t may be written again when all have ended turn t + 2

  // Each of these goes on after `last`, the one of the turn before, and waits for `others`.
  int32_t copy_in(uint64_t turn, int32_t last, int32_t others) {
    for (int other = 1; other < ranks_; ++other) {
      const int chunk = behind(other);
      const Cut cut = cut_of(chunk);
      if (turn >= cut.size()) continue;
      const auto [at, n] = cut[turn];
      last = moves_.copy(piece(rank_, turn, chunk), in_input(at), n, arithmetic_.prescale, {last, others});
    }
    return last;
  }

  int32_t sum_own(uint64_t turn, int32_t last, int32_t others) {
    const Cut cut = cut_of(rank_);
    if (turn >= cut.size()) return last;
    const auto [at, n] = cut[turn];
    const auto operand = [&, at = at](int rank) { return rank == rank_ ? in_input(at) : piece(rank, turn, rank_); };
    return sum(n, in_output(at), operand, last, others);
  }

  // Its own segment, complete after `last`, for the others to take.
  int32_t publish(uint64_t turn, int32_t last, int32_t others) {
    const Cut cut = cut_of(rank_);
    if (turn >= cut.size()) return last;
    const auto [at, n] = cut[turn];
    return moves_.copy(piece(rank_, turn, rank_), in_output(at), n, false, {last, others});
  }

  int32_t take_out(uint64_t turn, int32_t last, int32_t others) {
    for (int other = 1; other < ranks_; ++other) {
      const int chunk = behind(other);
      const Cut cut = cut_of(chunk);
      if (turn >= cut.size()) continue;
      const auto [at, n] = cut[turn];
      last = moves_.copy(in_output(at), piece(chunk, turn, chunk), n, false, {last, others});
    }
    return last;
  }

  // to = the sum of all, finished.
  template <class Operand>
  int32_t sum(uint64_t n, Region to, const Operand& operand_of, int32_t last, int32_t others) {
    last = sum_.add(n, to, operand_of, last, others);
    return arithmetic_.finish ? moves_.finish(to, to, n, {last}) : last;
  }

  int behind(int distance) const { return (rank_ + ranks_ - distance) % ranks_; }
  Cut cut_of(int chunk) const { return {chunk_of(count_, ranks_, chunk), piece_}; }
  Region piece(int owner, uint64_t turn, int chunk) const {
    return in_area_of(owner, ((turn % kTurns) * ranks_ + chunk) * piece_);
  }

  const int ranks_, rank_;
  const uint64_t count_;
  const Arithmetic arithmetic_;
  const uint64_t piece_;  // elements of a segment
  Moves moves_;
  HostSum sum_;
};

}  // namespace

Schedule shared_allreduce_direct(int ranks, int rank, uint64_t count, Pipeline pipeline, Arithmetic arithmetic,
                                 Half half) {
  return SharedAllreduce(ranks, rank, count, pipeline, arithmetic).direct(half);
}

Schedule shared_allreduce_staged(int ranks, int rank, uint64_t count, Pipeline pipeline, Arithmetic arithmetic,
                                 Half half) {
  return SharedAllreduce(ranks, rank, count, pipeline, arithmetic).staged(half);
}

uint64_t shared_area(int ranks, uint64_t count, Pipeline pipeline) {
  return SharedAllreduce(ranks, 0, count, pipeline, {}).area();
}

}  // namespace ringdp
