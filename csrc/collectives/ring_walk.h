// The two walks around the ring of an all-reduce, reduce-scatter and all-gather, over one part of the tensor. The drawing
// is in ring_allreduce.cc. What a rank contributes, and what becomes of a finished segment, is said by who derives from it.
#pragma once

#include <vector>

#include "collectives/ring.h"

namespace ringdp {

class RingWalk {
 public:
  virtual ~RingWalk() = default;

 protected:
  // part: of the tensor, cut into as many chunks as the ring has ranks. finish: whether complete segments are finished.
  RingWalk(Ring ring, Chunk part, Pipeline pipeline, bool finish, Half half);

  // This rank's own value of elements [at, at + n), for the first sum that it goes into: where it lies, from when on, and
  // whether that is where the result will be.
  struct Own {
    Region region;
    int32_t ready;
    bool in_output;
  };
  virtual Own own(uint64_t at, uint64_t n) = 0;
  // Elements [at, at + n) of the output are final when the move `final` is done.
  virtual void complete(uint64_t at, uint64_t n, int32_t final) = 0;

  void walk();                                                 // writes the moves
  uint64_t scratch() const { return scratch_slots_ * slot_; }  // elements, from the beginning of the scratch on

  const Half half_;  // the output holds the own chunk from the beginning on, if it is the second
  const Ring ring_;
  Moves moves_;

 private:
  void send_first();
  void send_own();
  void reduce_and_send_on(int hop);
  void gather_and_send_on(int hop);
  Cut cut_of(int chunk) const {
    const Chunk c = chunk_of(part_.end - part_.begin, ring_.ranks, chunk);
    return {{part_.begin + c.begin, part_.begin + c.end}, pipeline_.segment};
  }
  uint64_t longest_chunk() const { return chunk_of(part_.end - part_.begin, ring_.ranks, 0).end; }

  const Chunk part_;
  const Pipeline pipeline_;
  const bool finish_;
  const uint64_t slot_;  // elements
  const uint64_t scratch_slots_;
  std::vector<std::vector<int32_t>> sent_;  // by chunk and segment: the send of a partial sum out of the output
  Slots slots_;
  Turns window_;  // the last `depth` receives
};

}  // namespace ringdp
