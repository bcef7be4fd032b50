// The words of csrc/kernels/gpu/execution.h for any C++ compiler: kernels for GPUs as functions of the host. To be included
// before the first .cu file.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "kernel.h"
#include "kernels/gpu/parameters.h"

#define RINGDP_KERNELS_ON_HOST
#define RINGDP_DEVICE inline
#define RINGDP_SHARED static thread_local
#define RINGDP_NO_UNROLL
#define RINGDP_UNROLL

#define RINGDP_KERNEL(name, Parameters, ...)                          \
  inline void ringdp_##name(Parameters given) { __VA_ARGS__(given); } \
  const int added_##name = add({"ringdp_" #name, sizeof(Parameters), run<Parameters, ringdp_##name>});

// CUDA's type for 16 bytes.
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

namespace ringdp::kernels::gpu {
namespace {

int add(const StandinKernel& kernel);  // to the list of kernels, at the start of the process

thread_local unsigned now_block = 0, now_blocks = 0;

// No thread of the kernel goes on.
struct Trapped {};
[[noreturn]] inline void trap() {
  standin_trap();
  throw Trapped();
}

template <class Parameters, void (*kernel)(Parameters)>
void run(unsigned grid, unsigned block, const void* given) {
  if (block != kThreads) std::fprintf(stderr, "a block has %u threads, not %u\n", kThreads, block), std::abort();
  Parameters parameters;
  std::memcpy(&parameters, given, sizeof parameters);
  now_blocks = grid;
  try {
    for (now_block = 0; now_block < grid; ++now_block) kernel(parameters);
  } catch (const Trapped&) {
  }
}

inline uint64_t this_block() { return now_block; }
inline uint64_t all_blocks() { return now_blocks; }

// In every second block from the last one down: no thread may count on another to come before it.
template <class Body>
void each_thread(Body body) {
  for (unsigned i = 0; i < kThreads; ++i) body(now_block % 2 ? kThreads - 1 - i : i);
}
inline void barrier() {}  // every thread is there already
inline void publish() {}

// A GPU stops with an error at an address that does not fit.
template <class T>
void* reach(Address at) {
  if (at % sizeof(T) != 0) std::fprintf(stderr, "%zu bytes at %#lx\n", sizeof(T), long(at)), std::abort();
  const bool on_gpu = at - standin_device_memory < standin_device_bytes;
  if (!on_gpu) standin_check_pinned(at, sizeof(T));
  return reinterpret_cast<char*>(at) + (on_gpu ? standin_alias : 0);
}
template <class T>
T load(Address at) {
  T value;
  std::memcpy(&value, reach<T>(at), sizeof value);
  return value;
}
template <class T>
void store(Address at, T value) {
  std::memcpy(reach<T>(at), &value, sizeof value);
}

}  // namespace
}  // namespace ringdp::kernels::gpu
