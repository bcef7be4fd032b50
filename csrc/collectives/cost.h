// How long an all-reduce takes by each algorithm, in seconds, from the constants of a profile. docs/algorithms.md has
// the formulas. They are made of +, *, / and comparisons of doubles alone, which give the same on every machine.
//
// N ranks stand on H hosts in the order of their numbers, p to a host. A rank sends and receives at once; it adds
// while it does neither (the engine is one thread), so times of transfer and of addition are added up.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "collectives/profile.h"

namespace ringdp {

// Where the ranks of a process set are.
struct Placement {
  int ranks = 1;
  int hosts = 1;
  int ranks_per_host = 1;      // the most on any host
  bool shared_memory = false;  // all of them have proved that they share memory with one another
  bool two_levels = false;     // several hosts with as many ranks on each, and those of a host share memory
};

// Segments of each half of a double tree, for tensors that are not cut by the segment already: enough that a rank has
// seldom nothing to forward; and the shortest, below which a message costs the same whatever its length.
inline constexpr int kTreeSegments = 16;
inline constexpr uint64_t kTreeSegmentBytes = 4096;

double ring_cost(const Placement&, uint64_t bytes, Dtype, const Profile&);
double shared_memory_cost(const Placement&, uint64_t bytes, Dtype, const Profile&);
double two_level_cost(const Placement&, uint64_t bytes, Dtype, const Profile&);
double recursive_doubling_cost(const Placement&, uint64_t bytes, Dtype, const Profile&);
double halving_doubling_cost(const Placement&, uint64_t bytes, Dtype, const Profile&);
double double_tree_cost(const Placement&, uint64_t bytes, Dtype, const Profile&);

}  // namespace ringdp
