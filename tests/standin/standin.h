// What tests ask of the stand-in for libcuda beside the functions of CUDA.
#pragma once

#include <cstddef>
#include <functional>

#include "device/cuda.h"

extern "C" {
// Device memory, at once and in no order.
void standin_read(ringdp::cuda::Address from, void* to, size_t bytes);
void standin_write(ringdp::cuda::Address to, const void* from, size_t bytes);

void standin_synchronize_all();
long standin_calls(const char* function);  // how often a function of CUDA was called
long standin_live(const char* what);       // "allocations", "pinned", "streams", "events"

// From now on the function's `after`-th call (1: the next) gives the error.
void standin_fail(const char* function, int after, int error);

// For the stand-in for libnccl: work for the stream's thread, in order, which takes it over; the GPU of the current context.
void standin_enqueue(ringdp::cuda::Stream stream, std::function<void()>* work);
ringdp::cuda::Uuid standin_uuid();
int standin_ordinal();
}
