// Ranks that are threads of one process: the rank suite runs over it without mpirun, on seeded random delays if wanted.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

#include "transport/transport.h"

namespace ringdp {

// The meeting place of one communicator: every rank's transport keeps it alive.
class LocalHub;

// Short messages leave at once, as by MPI; longer ones when both sides are posted. delay_seed 0: they arrive then;
// otherwise test() answers "not yet" a random number of times first, so that arrivals interleave differently for each
// seed. on_the_way: called with each message where it arrives, and may change it there, as a bad cable would.
using OnTheWay = std::function<void(int from, int to, std::byte* data, size_t bytes)>;
std::shared_ptr<LocalHub> make_local_hub(int size, uint64_t delay_seed, OnTheWay on_the_way = nullptr);
std::unique_ptr<Transport> make_local_transport(std::shared_ptr<LocalHub> hub, int rank);

}  // namespace ringdp
