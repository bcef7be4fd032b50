// Which algorithm an all-reduce takes: the cheapest by the cost functions. It decides the order of addition, so it is a
// pure function of what is the same on all ranks and in every run: never of time, load, or anything measured here.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "collectives/algorithm.h"

namespace ringdp {

// What the choices of a process set depend on besides the operation.
struct Chooser {
  Placement placement;
  Profile profile;
  std::optional<Algorithm> forced;

  Algorithm choose(uint64_t bytes, Dtype dtype) const;
  // For halves of what lies on GPUs: NCCL's chunks lie in the order of the ranks, and those of two levels do not.
  Algorithm choose_in_one_level(uint64_t bytes, Dtype dtype) const;
  // Whether shared memory is not to be used, though it may be there.
  bool forces_messages() const {
    return forced && *forced != Algorithm::shared_memory && !(forced == Algorithm::two_level && placement.two_levels);
  }
};

// From the options `algorithm` ("auto" or a name) and `profile`. Throws (usage) for what is neither.
Chooser make_chooser(const Placement& placement, const std::string& algorithm, const std::string& profile);

// Whether the algorithm can run there at all.
bool possible(Algorithm algorithm, const Placement& at);

// Seconds of each that can run there, by name, in the order of the table.
std::vector<std::pair<std::string, double>> costs(const Placement& at, uint64_t bytes, Dtype dtype,
                                                  const Profile& profile);

// `forced`: the algorithm of RINGDP_ALGORITHM; where it cannot run, the ring does.
Algorithm choose(const Placement& at, uint64_t bytes, Dtype dtype, const Profile& profile,
                 std::optional<Algorithm> forced);

}  // namespace ringdp
