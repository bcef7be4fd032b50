// The casts of an all-reduce that travels in 16 bits: each piece when it is needed, so that they overlap with the transfer of
// the others.
//
// The schedule runs in place on memory of 16-bit elements, which begins with anything in it and is cut into *pieces*. A
// piece is cast in, as a whole, before the first move that reads it starts; it is cast out when the last move that
// writes it is done, since nothing changes it any more. No move writes what is not cast in: an all-reduce in place
// overwrites an element only with a sum that has the element in it. What no move reads (of one rank alone) is cast in and
// out all the same, as the result is a rounded one.
//
// Input and output may be the same memory: a piece is cast in long before it is cast out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <queue>
#include <vector>

#include "base/wide.h"
#include "collectives/schedule.h"

namespace ringdp {

class Casts {
 public:
  // narrow: `count` elements of dtype, the schedule's input and output. piece: elements, at least 1.
  Casts(const Schedule& schedule, const Wide& wide, void* narrow, Dtype dtype, uint64_t count, uint64_t piece);

  // Before a move starts: casts in what it reads. The bytes that were cast.
  uint64_t before(const Move& move);
  void after(const Move& move);  // it is done

  // The output must not be written before the headers were compared, and after a failure neither.
  bool any_out() const { return !out_.empty(); }
  uint64_t cast_out();  // one piece; the bytes that were cast
  bool done() const { return left_ == 0; }

 private:
  struct Piece {
    int32_t writers = 0;  // moves that will write it
    bool is_in = false;
  };
  struct Range {
    uint64_t begin, end;  // pieces
  };

  Range pieces_of(const Region& region, uint64_t count) const;
  uint64_t cast_in(uint64_t piece);
  uint64_t size_of_piece(uint64_t piece) const;

  const Wide wide_;
  std::byte* const narrow_;
  const Dtype dtype_;
  const uint64_t count_, piece_;
  std::vector<Piece> pieces_;
  std::queue<uint64_t> out_;  // to be cast out
  uint64_t left_;             // not cast out yet
};

}  // namespace ringdp
