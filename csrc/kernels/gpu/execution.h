// How a kernel runs: on a GPU by nvcc's words, and on the host, for tests, one block after the other and in each block
// one thread after the other (tests/standin/on_host.h). So a kernel says `each_thread(...)` for what its threads do, and
// `barrier()` where they wait for one another; what a thread wants to know after a barrier lies in shared memory. And
// every access to the GPU's memory is a load() or store(), at an address that fits the size.
#pragma once

#include "kernels/gpu/parameters.h"

#if defined(__CUDACC__)

#define RINGDP_DEVICE __device__ __forceinline__
#define RINGDP_SHARED __shared__
#define RINGDP_NO_UNROLL _Pragma("unroll 1")
#define RINGDP_UNROLL _Pragma("unroll")

// One kernel: its name without "ringdp_", its parameters, and what runs them.
#define RINGDP_KERNEL(name, Parameters, ...)                                                                       \
  extern "C" __global__ void __launch_bounds__(::ringdp::kernels::gpu::kThreads) ringdp_##name(Parameters given) { \
    __VA_ARGS__(given);                                                                                            \
  }

namespace ringdp::kernels::gpu {
namespace {

RINGDP_DEVICE uint64_t this_block() { return blockIdx.x; }
RINGDP_DEVICE uint64_t all_blocks() { return gridDim.x; }

template <class Body>
RINGDP_DEVICE void each_thread(Body body) {
  body(threadIdx.x);
}
RINGDP_DEVICE void barrier() { __syncthreads(); }

template <class T>
RINGDP_DEVICE T load(Address at) {
  return *reinterpret_cast<const T*>(at);
}
template <class T>
RINGDP_DEVICE void store(Address at, T value) {
  *reinterpret_cast<T*>(at) = value;
}

}  // namespace
}  // namespace ringdp::kernels::gpu

#elif !defined(RINGDP_KERNELS_ON_HOST)
#error "kernels for GPUs are compiled by nvcc, or for tests by way of tests/standin/on_host.h"
#endif
