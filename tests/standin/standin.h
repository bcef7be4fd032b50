// What tests ask of the stand-in for libcuda beside the functions of CUDA.
#pragma once

#include <cstddef>
#include <functional>

#include "device/cuda.h"

extern "C" {
// Device memory, at once and in no order.
void standin_read(ringdp::cuda::Address from, void* to, size_t bytes);
void standin_write(ringdp::cuda::Address to, const void* from, size_t bytes);

// The stream does nothing that it is given from now on until the hold is released.
int standin_hold(ringdp::cuda::Stream stream);
void standin_release(int hold);

void standin_synchronize_all();
long standin_calls(const char* function);  // how often a function of CUDA was called
long standin_live(const char* what);       // "allocations", "pinned", "streams", "events", "graphs"

// From now on the function's `after`-th call (1: the next) gives the error.
void standin_fail(const char* function, int after, int error);

// From now on cuEventQuery says that each event has passed, or the truth again.
void standin_events_pass(int early);

// For the stand-in for libnccl. The stream that a handle means, which must be one of the GPU; the number of the capture that
// it is in, or 0; work for its thread, in order, which takes it over, or its answer where it is not in that capture now
// (903: stream capture unmatched), or cannot be given anything; where the bytes of a GPU are; the GPU of the current
// context; whether a kernel has stopped all GPUs of this process.
ringdp::cuda::Stream standin_stream(ringdp::cuda::Stream stream, int device);
uint64_t standin_capture(ringdp::cuda::Stream stream);
ringdp::cuda::Result standin_enqueue(ringdp::cuda::Stream stream, uint64_t capture, std::function<void()>* work);
std::byte* standin_reach(ringdp::cuda::Address at, size_t bytes, const char* who, int device);
int standin_stopped();
ringdp::cuda::Uuid standin_uuid();
int standin_ordinal();
}
