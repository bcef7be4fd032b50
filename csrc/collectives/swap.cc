// Two ranks swap their tensors: each sends its input and receives the other's into its output, segment by segment.
#include "collectives/moves.h"

namespace ringdp {

Schedule swap(int peer, uint64_t count, Pipeline pipeline) {
  check(pipeline);
  const Cut cut({0, count}, pipeline.segment);
  Turns window(pipeline.depth);  // the last `depth` receives
  Moves moves;
  for (uint64_t i = 0; i < cut.size(); ++i) {
    const auto [at, n] = cut[i];
    moves.send(peer, in_input(at), n, {});
    window.add(moves.receive(peer, in_output(at), n, {window.oldest()}));
  }
  return moves.take();
}

}  // namespace ringdp
