// Into which segments the operations of an engine are cut. Speed only: the order of addition does not depend on it.
#pragma once

#include <vector>

#include "base/dtype.h"
#include "base/options.h"
#include "collectives/levels.h"
#include "collectives/schedule.h"

namespace ringdp {

inline constexpr size_t kLongestMessage = 64 << 20;  // bytes

// Of messages. Segments grow with very large chunks, so that the number of moves stays in the tens of thousands.
Pipeline cut_for_messages(uint64_t chunk_elements, Dtype dtype, const Options& options);

// Of what goes through shared memory: segments that the caches hold, so that what is copied in by one rank and summed by
// another never sees main memory.
Pipeline cut_for_shared_memory(Dtype dtype, const Options& options);

// Of what goes through both: the segments of the ring between hosts.
Pipeline cut_for_two_levels(const Levels& levels, uint64_t count, Dtype dtype, const Options& options);

// Of tensors on GPUs that go in two levels: into segments which all but the last have `mates` chunks of the same size. At
// least four where the tensor is large, so that what GPUs and links do overlaps; none of an empty tensor.
std::vector<Chunk> cut_for_gpu_levels(uint64_t count, int mates, Dtype dtype);

}  // namespace ringdp
