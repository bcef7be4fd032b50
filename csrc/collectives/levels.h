// Who is on which host, as the all-reduce in two levels needs it.
#pragma once

#include <optional>
#include <vector>

#include "collectives/schedule.h"

namespace ringdp {

struct Levels {
  std::vector<int> mates;  // the ranks of this host, in order
  std::vector<int> ring;   // those who are at the same place of their host, by host
  int me = 0, host = 0;    // this rank's place in each
};

// host_of: by rank, any numbers; empty: each rank on its own. Nothing unless there are several hosts, with as many ranks on each, and more than one.
std::optional<Levels> levels_of(const std::vector<int>& host_of, int rank);

// This rank's own chunk between the halves of an all-reduce in two levels: chunk `host` of part `me`.
inline Chunk own_chunk(const Levels& levels, uint64_t count) {
  const Chunk part = chunk_of(count, static_cast<int>(levels.mates.size()), levels.me);
  const Chunk chunk = chunk_of(part.end - part.begin, static_cast<int>(levels.ring.size()), levels.host);
  return {part.begin + chunk.begin, part.begin + chunk.end};
}

}  // namespace ringdp
