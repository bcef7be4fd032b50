// Ranks that are threads of one process: the rank suite runs over it without mpirun, on seeded random delays if wanted.
#pragma once

#include <memory>

#include "transport/transport.h"

namespace ringdp {

// The meeting place of one communicator: every rank's transport keeps it alive.
class LocalHub;

// Short messages leave at once, as by MPI; longer ones when both sides are posted. delay_seed 0: they arrive then;
// otherwise test() answers "not yet" a random number of times first, so that arrivals interleave differently for each
// seed.
std::shared_ptr<LocalHub> make_local_hub(int size, uint64_t delay_seed);
std::unique_ptr<Transport> make_local_transport(std::shared_ptr<LocalHub> hub, int rank);

}  // namespace ringdp
