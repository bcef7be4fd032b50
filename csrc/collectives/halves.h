// The halves of an all-reduce in place (schedule.h): which algorithms have them, and whose chunk is whose in between. Where
// one has none, the whole of it stands for the first half, as it gives the same bits, and the ring's for the second.
#pragma once

#include <optional>

#include "collectives/algorithm.h"
#include "collectives/levels.h"

namespace ringdp {

bool has_halves(Algorithm algorithm, int ranks);

// Who does a half of what `chosen` would do as a whole.
Algorithm algorithm_of_half(Half half, Algorithm chosen, int ranks);

// The rank's own chunk, of an all-reduce by `chosen`. `levels`: for the one in two levels.
Chunk own_chunk(Algorithm chosen, const std::optional<Levels>& levels, int ranks, int rank, uint64_t count);

// By messages.
Schedule half_of(Algorithm algorithm, Half half, int ranks, int rank, uint64_t count, Pipeline, Arithmetic);

}  // namespace ringdp
