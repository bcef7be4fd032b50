// What NCCL does to elements; other than in csrc/kernels, its average multiplies first, and Min and Max drop NaNs.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "device/nccl.h"

namespace standin {

using ringdp::Dtype;

bool is_known(ringdp::nccl::DataType type);
Dtype dtype_of(ringdp::nccl::DataType type);

// data[i] *= factor, whose bytes are those of an element: integers wrap.
void premultiply(Dtype dtype, void* data, uint64_t factor, uint64_t elements);
uint64_t bytes_of(Dtype dtype, double factor);  // of a float

// to[i] = to[i] op with[i]; averages and pre-multiplied sums are sums here.
void combine(Dtype dtype, ringdp::nccl::Operation operation, void* to, const void* with, uint64_t elements);

// data[i] /= ranks, of integers, towards zero.
void divide(Dtype dtype, void* data, int ranks, uint64_t elements);

}  // namespace standin
