#include "collectives/halves.h"

#include "base/check.h"

namespace ringdp {

bool has_halves(Algorithm algorithm, int ranks) {
  switch (algorithm) {
    case Algorithm::ring:
    case Algorithm::shared_memory:
    case Algorithm::two_level:
      return true;
    case Algorithm::halving_doubling:
      return (ranks & (ranks - 1)) == 0;
    default:
      return false;
  }
}

Algorithm algorithm_of_half(Half half, Algorithm chosen, int ranks) {
  return half == Half::all_gather && !has_halves(chosen, ranks) ? Algorithm::ring : chosen;
}

Chunk own_chunk(Algorithm chosen, const std::optional<Levels>& levels, int ranks, int rank, uint64_t count) {
  if (chosen == Algorithm::two_level && levels) return own_chunk(*levels, count);
  if (chosen == Algorithm::halving_doubling && has_halves(chosen, ranks))
    return halving_doubling_chunk(ranks, rank, count);
  return chunk_of(count, ranks, rank);
}

Schedule half_of(Algorithm algorithm, Half half, int ranks, int rank, uint64_t count, Pipeline pipeline,
                 Arithmetic arithmetic) {
  if (!has_halves(algorithm, ranks)) {
    RINGDP_CHECK(half != Half::all_gather);
    return row_of(algorithm).schedule(ranks, rank, count, pipeline, arithmetic, true);
  }
  if (algorithm == Algorithm::halving_doubling)
    return halving_doubling_half(half, ranks, rank, count, pipeline, arithmetic);
  return ring_half(half, ranks, rank, count, pipeline, arithmetic);
}

}  // namespace ringdp
