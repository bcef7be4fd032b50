// Every small case of a collective.
#pragma once

#include "collectives/cases.h"

namespace ringdp::simulate {

// All cases with the collective, ranks, hosts and algorithm of `like` and 0 … max_count elements, equal and random
// chunks, in place and not, scaled and finished and not, with each segment and depth (every root with the first depth);
// each under one seed of its own. Segments that cut alike are run once. Returns how many cases there were.
uint64_t sweep(const Case& like, uint64_t max_count, const std::vector<uint64_t>& segments,
               const std::vector<int>& depths, uint64_t seed);

}  // namespace ringdp::simulate
