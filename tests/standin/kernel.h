// Between the two halves of the stand-in for libcuda: device memory and streams (cuda.cc), and the kernels compiled for the
// host (kernels.cc).
#pragma once

#include <cstddef>
#include <cstdint>

// Every kernel takes one structure by value, which is copied at launch, as CUDA does.
struct StandinKernel {
  const char* name;
  size_t parameter_bytes;
  void (*run)(unsigned grid, unsigned block, const void* parameters);  // all blocks, one after the other
};

extern "C" {
// Of kernels.cc.
const StandinKernel* standin_kernels(size_t* count);

// Of cuda.cc. Device memory has no access at its address, so that whoever takes it for the host's crashes; the stand-in
// itself, and its kernels, find it so many bytes further.
extern ptrdiff_t standin_alias;
extern uint64_t standin_device_memory, standin_device_bytes;  // all other addresses are the host's
// Of cuda.cc. The context ends with an error; and what it is not: memory of the host that kernels may touch.
void standin_trap();
void standin_check_pinned(uint64_t at, size_t bytes);
}
