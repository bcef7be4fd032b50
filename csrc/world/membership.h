// Of what a process set is made, on one of its ranks.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "collectives/cost.h"
#include "shared/host.h"
#include "transport/transport.h"

namespace ringdp {

// The ranks that have proved to share memory with this one, as far as they are in the set; empty: none.
struct Neighbourhood {
  std::shared_ptr<Host> host;
  std::vector<int> members;            // by their ranks in the job, in order, this one included
  std::vector<uint64_t> mail_offsets;  // of each one's part of the set's mail, in its heap
};

struct Membership {
  std::vector<int> ranks;  // by rank of the set: the rank in the job. In order.
  std::unique_ptr<Transport> data, control;
  Placement placement;  // whether memory is shared is found out from the next two
  Neighbourhood neighbourhood;
  std::vector<int>
      sharing;  // by rank of the set: a number that ranks have in common which share memory; empty: none do
  // Where GPU tensors go in two levels: the sets in which this rank takes their steps (engine/gpu_levels.h); on all ranks
  // or on none.
  std::unique_ptr<Membership> in_host = nullptr, between_hosts = nullptr;
};

}  // namespace ringdp
