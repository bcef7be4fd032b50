// What the algorithms are made of: a list of moves that is written one verb a line, a chunk cut into segments,
// scratch slots used in turn, and a window on receives in flight.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <utility>
#include <vector>

#include "base/check.h"
#include "collectives/schedule.h"

namespace ringdp {

inline constexpr int32_t kNone = -1;  // no move: allowed wherever a move is named in `after`

inline Region in_input(uint64_t offset) { return {Place::input, offset}; }
inline Region in_output(uint64_t offset) { return {Place::output, offset}; }
inline Region in_output_of(int rank, uint64_t offset) { return {Place::output, offset, rank}; }
inline Region in_area_of(int rank, uint64_t offset) { return {Place::area, offset, rank}; }
inline Region in_scratch(uint64_t offset) { return {Place::scratch, offset}; }

// Appends moves; each verb returns the index of its move, to be named in a later one's `after`.
class Moves {
 public:
  using After = std::initializer_list<int32_t>;

  int32_t send(int peer, Region from, uint64_t count, After after) {
    Move m = blank(Kind::send, count, after);
    m.peer = peer, m.from = from;
    return add(m);
  }
  int32_t receive(int peer, Region to, uint64_t count, After after) {
    Move m = blank(Kind::receive, count, after);
    m.peer = peer, m.to = to;
    return add(m);
  }
  int32_t reduce(Region to, Region from, Region with, uint64_t count, After after) {
    Move m = blank(Kind::reduce, count, after);
    m.to = to, m.from = from, m.with = with;
    return add(m);
  }
  int32_t copy(Region to, Region from, uint64_t count, bool prescale, After after) {
    Move m = blank(Kind::copy, count, after);
    m.to = to, m.from = from, m.prescale = prescale;
    return add(m);
  }
  int32_t finish(Region to, Region from, uint64_t count, After after) {
    Move m = blank(Kind::finish, count, after);
    m.to = to, m.from = from;
    return add(m);
  }
  // Tokens are numbered by themselves: the k-th signal of a line is number k, and is awaited as that.
  int32_t signal(After after, uint8_t line = 0) {
    Line& of = lines_[line];
    Move m = blank(Kind::signal, ++of.signals, after);
    m.line = line;
    return of.last = add(name(m, of.last));
  }
  int32_t await(uint64_t number, After after = {}, uint8_t line = 0) {
    Move m = blank(Kind::await, number, after);
    m.line = line;
    return add(m);
  }
  Schedule take(uint64_t scratch = 0, uint64_t area = 0) { return {std::move(moves_), scratch, area}; }

 private:
  static Move blank(Kind kind, uint64_t count, After after) {
    Move m;
    m.kind = kind, m.count = count;
    for (int32_t a : after) m = name(m, a);
    return m;
  }
  static Move name(Move m, int32_t after) {
    if (after == kNone) return m;
    size_t n = 0;
    while (n < m.after.size() && m.after[n] != kNone && m.after[n] != after) ++n;  // once, however often it is given
    RINGDP_CHECK(n < m.after.size(), "a move waits for more than ", Move::kAfter, " others");
    m.after[n] = after;
    return m;
  }
  int32_t add(const Move& m) {
    if (moves_.size() >= static_cast<size_t>(std::numeric_limits<int32_t>::max()))
      fail(ErrorKind::usage, "a schedule of more than 2^31 moves: choose a larger segment");
    moves_.push_back(m);
    return static_cast<int32_t>(moves_.size() - 1);
  }
  struct Line {
    uint64_t signals = 0;
    int32_t last = kNone;
  };
  std::vector<Move> moves_;
  std::array<Line, Move::kLines> lines_;
};

// A chunk cut into segments of equal length, the last one perhaps shorter. An empty chunk has none.
class Cut {
 public:
  struct Segment {
    uint64_t begin, count;
  };
  Cut(Chunk chunk, uint64_t segment) : chunk_(chunk), segment_(segment) {}
  uint64_t size() const {
    const uint64_t length = chunk_.end - chunk_.begin;
    return length / segment_ + (length % segment_ != 0);
  }
  Segment operator[](uint64_t i) const {
    const uint64_t begin = chunk_.begin + i * segment_;
    return {begin, std::min(segment_, chunk_.end - begin)};
  }

 private:
  Chunk chunk_;
  uint64_t segment_;
};

// Chunks of given sizes, one after the other.
inline std::vector<Chunk> chunks_of(const std::vector<uint64_t>& counts) {
  std::vector<Chunk> chunks;
  uint64_t begin = 0;
  for (uint64_t count : counts) {
    chunks.push_back({begin, begin + count});
    begin += count;
  }
  return chunks;
}

inline uint64_t longest(const std::vector<Chunk>& chunks) {
  uint64_t length = 0;
  for (const Chunk& c : chunks) length = std::max(length, c.end - c.begin);
  return length;
}

// Remembers one move for each of the last `size` turns, to be named by whoever takes the same place next.
class Turns {
 public:
  explicit Turns(uint64_t size) : moves_(size, kNone) {}
  int32_t oldest() const { return moves_[turn_ % moves_.size()]; }  // of `size` turns ago; kNone: not yet so many
  uint64_t place() const { return turn_ % moves_.size(); }
  void add(int32_t move) { moves_[turn_++ % moves_.size()] = move; }

 private:
  std::vector<int32_t> moves_;
  uint64_t turn_ = 0;
};

// Scratch slots used in turn. Whoever writes into region() waits for freed_by(), the last reader of what the slot
// held before; the turn ends with read_by(), which names the last reader of what it holds now.
class Slots {
 public:
  Slots(uint64_t begin, uint64_t slots, uint64_t length) : begin_(begin), length_(length), readers_(slots) {}
  Region region() const { return {Place::scratch, begin_ + readers_.place() * length_}; }
  int32_t freed_by() const { return readers_.oldest(); }
  void read_by(int32_t move) { readers_.add(move); }

 private:
  uint64_t begin_, length_;
  Turns readers_;
};

inline void check(const Pipeline& pipeline) {
  if (pipeline.segment < 1) fail(ErrorKind::usage, "a segment has at least one element");
  if (pipeline.depth < 1) fail(ErrorKind::usage, "depth ", pipeline.depth, ": at least one receive must be in flight");
}

inline void check(int ranks, int rank) {
  if (rank < 0 || rank >= ranks) fail(ErrorKind::usage, "rank ", rank, " is not one of ", ranks);
}

}  // namespace ringdp
