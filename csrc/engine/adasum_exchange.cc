// Adasum of more than two ranks, in log2 N exchanges.
#include "collectives/adasum.h"
#include "engine/operation.h"

namespace ringdp {

// In exchange k a rank and the one whose number differs in bit k swap what they have, and both form the same Adasum of the
// two. The whole tensor is needed for its products, so nothing is pipelined but the swap.
void Operation::begin_adasum() {
  const Submission& s = submission_;
  elements().begin(s.output, s.input, s.count());
  theirs_.resize(s.count() * size_of(s.dtype));
  begin_adasum_level(0);
}

void Operation::begin_adasum_level(int level) {
  const Submission& s = submission_;
  if (1 << level >= set_.size()) {
    elements().finish(s.output, s.output, s.count());
    return finish();
  }
  adasum_level_ = level;
  Elements e;
  e.dtype = s.dtype;
  start_run(swap(set_.rank() ^ 1 << level, s.count(), pipeline(s.count(), s.dtype)), {s.output, theirs_.data()}, e,
            static_cast<uint32_t>(1 + level));
}

void Operation::end_adasum_level() {
  const Submission& s = submission_;
  const bool mine_first = !(set_.rank() >> adasum_level_ & 1);
  const void *mine = s.output, *theirs = theirs_.data();
  adasum(s.dtype, s.output, mine_first ? mine : theirs, mine_first ? theirs : mine, s.count());
  run_.reset();
  begin_adasum_level(adasum_level_ + 1);
}

}  // namespace ringdp
