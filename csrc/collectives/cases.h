// One collective with all its parameters, as the tests vary them: what its schedules are, and what a simulation of
// them starts from and must end with.
#pragma once

#include "collectives/algorithm.h"
#include "collectives/simulate.h"

namespace ringdp::simulate {

enum class Collective { allreduce, reduce_scatter, allgather, broadcast, alltoall };

// How an all-reduce uses the memory that the ranks of a host share. Another one is a value here, its name and its line
// in cases.cc.
enum class Sharing {
  none,    // messages alone: by Case::algorithm
  direct,  // the outputs, in place
  staged,  // areas
  two_level_direct,
  two_level_staged,
  two_level_messages,
  two_level_mixed,  // each host in another way
};

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
  Algorithm algorithm = Algorithm::ring;  // allreduce by messages
  Sharing sharing = Sharing::none;        // allreduce
  std::vector<int> host_of;               // by rank: ranks of one host can share memory; empty: all are of one
  Half half = Half::both;                 // allreduce in place, by what has halves
};

constexpr bool in_two_levels(Sharing s) { return s >= Sharing::two_level_direct; }
Chunk own_chunk(const Case& c, int rank);  // of a half
constexpr bool only_in_place(Sharing s) { return s == Sharing::direct || s == Sharing::two_level_direct; }
const char* name_of(Sharing sharing);
std::string describe(const Case& c);
Schedule schedule_of(const Case& c, int rank);
std::vector<Schedule> schedules_of(const Case& c);  // by rank
Problem problem_of(const Case& c);

// Runs the schedules under each seed; an error's text begins with the case and the seed.
void check(const Case& c, std::vector<Schedule> schedules, uint64_t first_seed, uint64_t seeds);

}  // namespace ringdp::simulate
