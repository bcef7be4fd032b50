// One collective with all its parameters, as the tests vary them: what its schedules are, and what a simulation of
// them starts from and must end with.
#pragma once

#include "collectives/algorithm.h"
#include "collectives/simulate.h"

namespace ringdp::simulate {

enum class Collective { allreduce, reduce_scatter, allgather, broadcast, alltoall };

struct Case {
  Collective collective = Collective::allreduce;
  int ranks = 1;
  // Elements. allreduce, broadcast: one number; reduce_scatter, allgather: one per rank; alltoall: ranks * ranks, what
  // rank r sends to rank p at [r * ranks + p].
  std::vector<uint64_t> counts;
  Pipeline pipeline;
  Arithmetic arithmetic;                  // allreduce, reduce_scatter
  bool in_place = false;                  // allreduce, broadcast
  int root = 0;                           // broadcast
  Algorithm algorithm = Algorithm::ring;  // allreduce
};

std::string describe(const Case& c);
Schedule schedule_of(const Case& c, int rank);
std::vector<Schedule> schedules_of(const Case& c);  // by rank
Problem problem_of(const Case& c);

// Runs the schedules under each seed; an error's text begins with the case and the seed.
void check(const Case& c, std::vector<Schedule> schedules, uint64_t first_seed, uint64_t seeds);

// All cases of a collective on this many ranks with 0 … max_count elements, equal and random chunks, in place and not,
// scaled and finished and not, with each segment and depth (every root with the first depth); each under one seed of
// its own. Segments that cut alike are run once. Returns how many cases there were.
uint64_t sweep(Collective collective, Algorithm algorithm, int ranks, uint64_t max_count,
               const std::vector<uint64_t>& segments, const std::vector<int>& depths, uint64_t seed);

}  // namespace ringdp::simulate
