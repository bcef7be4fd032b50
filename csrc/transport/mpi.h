// The core's side of the MPI unit: loads the shared object once and wraps communicators as transports.
#pragma once

#include <memory>
#include <string>

#include "transport/transport.h"

namespace ringdp {

// Loads the unit at `path` (once; later calls must name the same file) and returns the MPI that it was made for.
std::string load_mpi_unit(const std::string& path);

// What this MPI says; after it was initialised, and the unit loaded.
TakesGpuMemory mpi_takes_gpu_memory();

// A transport over the communicator with this handle (mpi4py: int(MPI._handleof(comm))). The communicator stays the
// caller's and must outlive the transport.
std::unique_ptr<Transport> make_mpi_transport(uint64_t comm);

}  // namespace ringdp
