// Reductions on GPUs in chunks: each rank gets its own chunk of all ranks' tensors, kernels of ours reduce them there in the
// order of the ranks, and of an all-reduce the results are gathered. Who moves the chunks, NCCL (launch.h) or an MPI that takes
// memory of GPUs (by_mpi.cc), changes nothing of the sums.
#pragma once

#include <vector>

#include "collectives/elements.h"
#include "collectives/schedule.h"
#include "device/gpu.h"
#include "submit/submission.h"
#include "world/process_set.h"

namespace ringdp {

// Elements of each rank, by rank: between the halves of an all-reduce, and in a reduce-scatter.
std::vector<Chunk> chunks_of(const Submission& submission, const ProcessSet& set);

inline uint64_t size_of(const Chunk& chunk) { return chunk.end - chunk.begin; }

// `chunks`: those of all ranks, of `count` elements each, one behind the other; they are
// scaled in their place.
void reduce_chunks(Gpu& gpu, const Elements& elements, int ranks, void* sum, void* chunks, uint64_t count,
                   cuda::Stream stream);

// What is left to do with sums: divided and scaled.
void finish_on_gpu(Gpu& gpu, const Elements& elements, void* sums, uint64_t count, cuda::Stream stream);

}  // namespace ringdp
