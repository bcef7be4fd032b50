// All-to-all in pairs: in round k rank r sends to r + k and receives from r - k, modulo N, so that in each round every
// rank sends to one and receives from one:
//
//   four ranks        round 1            round 2            round 3
//                  0→1 1→2 2→3 3→0    0→2 1→3 2→0 3→1    0→3 1→0 2→1 3→2
//
// A rank has `depth` sends and `depth` receives under way and begins the next round when its own window allows, not
// when the round is over elsewhere. A message waits only for messages of an earlier round, or for earlier segments of
// its own, so there is no cycle. Everything goes straight from input to output. No scratch.
#include "collectives/moves.h"

namespace ringdp {

Schedule pairwise_alltoall(int rank, const std::vector<uint64_t>& send_counts,
                           const std::vector<uint64_t>& receive_counts, Pipeline pipeline) {
  return pairwise_alltoall(rank, chunks_of(send_counts), chunks_of(receive_counts), pipeline);
}

Schedule pairwise_alltoall(int rank, const std::vector<Chunk>& sends, const std::vector<Chunk>& receives,
                           Pipeline pipeline) {
  const int ranks = static_cast<int>(sends.size());
  check(pipeline);
  check(ranks, rank);
  const uint64_t own = sends[rank].end - sends[rank].begin;
  if (receives.size() != sends.size() || own != receives[rank].end - receives[rank].begin)
    fail(ErrorKind::usage, "all-to-all: rank ", rank, " sends to ", ranks, " ranks and receives from ", receives.size(),
         "; to itself it sends ", own, " elements");
  Turns sent(pipeline.depth), received(pipeline.depth);
  Moves moves;

  const Cut from(sends[rank], pipeline.segment), to(receives[rank], pipeline.segment);
  for (uint64_t i = 0; i < from.size(); ++i)
    moves.copy(in_output(to[i].begin), in_input(from[i].begin), from[i].count, false, {});

  for (int round = 1; round < ranks; ++round) {
    const int next = (rank + round) % ranks, previous = (rank - round + ranks) % ranks;
    const Cut out(sends[next], pipeline.segment), in(receives[previous], pipeline.segment);
    for (uint64_t i = 0; i < std::max(out.size(), in.size()); ++i) {
      if (i < in.size())
        received.add(moves.receive(previous, in_output(in[i].begin), in[i].count, {received.oldest()}));
      if (i < out.size()) sent.add(moves.send(next, in_input(out[i].begin), out[i].count, {sent.oldest()}));
    }
  }
  return moves.take();
}

}  // namespace ringdp
