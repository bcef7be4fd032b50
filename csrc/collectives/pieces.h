// What an all-reduce reduces may lie elsewhere than the memory its schedule runs on: in wider elements (casts.h), or on a GPU
// (device/staging.h). Then it is brought in and taken out piece by piece, so that this overlaps with the transfers.
//
// The schedule runs in place on memory that begins with anything in it and is cut into *pieces*. A piece is brought in, as
// a whole, before the first move that reads it starts; it is taken out when the last move that writes it is done, since
// nothing changes it any more. No move writes what is not brought in: an all-reduce in place overwrites an element only
// with a sum that has the element in it. What no move reads (of one rank alone) is brought in and taken out all the same.
//
// Input and output may be the same memory: a piece is brought in long before it is taken out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <queue>
#include <vector>

#include "collectives/schedule.h"

namespace ringdp {

class Pieces {
 public:
  // `count` elements, the schedule's input and output; `piece`: elements, at least 1.
  Pieces(const Schedule& schedule, uint64_t count, uint64_t piece);
  virtual ~Pieces() = default;
  Pieces(const Pieces&) = delete;
  Pieces& operator=(const Pieces&) = delete;

  bool here(const Move& move);        // what it reads can be read now, or before() makes it so
  uint64_t before(const Move& move);  // it starts; the bytes that were touched
  void after(const Move& move);       // it is done

  // The output must not be written before the headers were compared, and after a failure neither.
  bool any_out() { return !out_.empty() && arrived(out_.front()); }
  uint64_t take_out();  // one piece; the bytes that were touched
  bool done() const { return left_ == 0; }

 protected:
  uint64_t pieces() const { return writers_.size(); }
  uint64_t begin_of(uint64_t piece) const { return piece * piece_; }
  uint64_t size_of_piece(uint64_t piece) const;
  std::vector<uint64_t> order_of_reading(const Schedule& schedule) const;  // all pieces

 private:
  struct Range {
    uint64_t begin, end;  // pieces
  };

  virtual bool arrived(uint64_t piece) = 0;
  virtual uint64_t bring_in(uint64_t piece) = 0;  // where it has not been
  virtual uint64_t bring_out(uint64_t piece) = 0;
  Range pieces_of(const Region& region, uint64_t count) const;
  template <class Act>
  void for_each_read(const Move& move, const Act& act) const;

  const uint64_t count_, piece_;
  std::vector<int32_t> writers_;  // by piece: moves that will write it
  std::queue<uint64_t> out_;      // to be taken out
  uint64_t left_;                 // not taken out yet
};

}  // namespace ringdp
