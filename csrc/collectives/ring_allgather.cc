// All-gather by ring: the second half of ring_allreduce.cc (see the drawing there), with contributions of given sizes.
// Rank r first sends its own contribution, then passes on what it receives; after N-1 hops all have all. A segment is
// received straight into its place in the output and sent on from there. Memory: no scratch.
#include "collectives/ring.h"

namespace ringdp {

Schedule ring_allgather(int rank, const std::vector<uint64_t>& counts, Pipeline pipeline) {
  return ring_allgather(rank, chunks_of(counts), pipeline);
}

Schedule ring_allgather(int rank, const std::vector<Chunk>& chunks, Pipeline pipeline) {
  const Ring ring{static_cast<int>(chunks.size()), rank};
  check(pipeline);
  check(ring.ranks, rank);
  const Cut own(chunks[rank], pipeline.segment);
  Turns window(pipeline.depth);  // the last `depth` receives
  Moves moves;

  if (ring.ranks > 1) {
    for (uint64_t i = 0; i < own.size(); ++i)
      moves.send(ring.next(), in_input(own[i].begin - chunks[rank].begin), own[i].count, {});
  }
  for (uint64_t i = 0; i < own.size(); ++i)
    moves.copy(in_output(own[i].begin), in_input(own[i].begin - chunks[rank].begin), own[i].count, false, {});

  for (int hop = 0; hop < ring.ranks - 1; ++hop) {
    const Cut cut(chunks[ring.behind(hop + 1)], pipeline.segment);
    for (uint64_t i = 0; i < cut.size(); ++i) {
      const auto [at, n] = cut[i];
      const int32_t received = moves.receive(ring.previous(), in_output(at), n, {window.oldest()});
      window.add(received);
      if (hop < ring.ranks - 2) moves.send(ring.next(), in_output(at), n, {received});
    }
  }
  return moves.take();
}

}  // namespace ringdp
