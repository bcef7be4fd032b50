// How a kernel runs: on a GPU by nvcc's words, and on the host, for tests, one block after the other and in each block
// one thread after the other (tests/standin/on_host.h). So a kernel says `each_thread(...)` for what its threads do and
// `barrier()` where they wait for one another; what a thread wants to know after a barrier lies in shared memory. And
// every access to the GPU's memory is a load() or store(), at an address that fits the size.
#pragma once

#include <type_traits>

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
// What was stored is there for the host, too, whatever comes next.
RINGDP_DEVICE void publish() { __threadfence_system(); }
// The context ends with an error: nothing that is launched in it, or was, goes on.
RINGDP_DEVICE void trap() { __trap(); }

// Words of 16 bytes by the functions that are one instruction each: of an assignment nvcc may make four.
template <class T>
RINGDP_DEVICE T load(Address at) {
  const auto* const from = reinterpret_cast<const T*>(at);
  if constexpr (std::is_same_v<T, uint4>)
    return __ldca(from);
  else
    return *from;
}
template <class T>
RINGDP_DEVICE void store(Address at, T value) {
  auto* const to = reinterpret_cast<T*>(at);
  if constexpr (std::is_same_v<T, uint4>)
    __stwb(to, value);
  else
    *to = value;
}

}  // namespace
}  // namespace ringdp::kernels::gpu

#elif !defined(RINGDP_KERNELS_ON_HOST)
#error "kernels for GPUs are compiled by nvcc, or for tests by way of tests/standin/on_host.h"
#endif
