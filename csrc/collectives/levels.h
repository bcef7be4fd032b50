// Who is on which host, as the all-reduce in two levels needs it.
#pragma once

#include <optional>
#include <vector>

namespace ringdp {

struct Levels {
  std::vector<int> mates;  // the ranks of this host, in order
  std::vector<int> ring;   // those who are at the same place of their host, by host
  int me = 0, host = 0;    // this rank's place in each
};

// host_of: by rank, any numbers; empty: each rank on its own. Nothing unless there are several hosts, with as many ranks on each, and more than one.
std::optional<Levels> levels_of(const std::vector<int>& host_of, int rank);

}  // namespace ringdp
