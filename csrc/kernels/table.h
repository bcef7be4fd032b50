// What one variant offers: a function for every dtype and operation.
//
// Every standard header that the kernels need is included here, before a variant file allows itself more
// instructions (see RINGDP_TARGET in kernels/simd.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "base/dtype.h"

namespace ringdp::kernels {

using Reduce = void (*)(void* to, const void* a, const void* b, size_t count);
using Scale = void (*)(void* to, const void* from, double factor, size_t count);
using Divide = void (*)(void* to, const void* from, int ranks, size_t count);
using Cast = void (*)(void* to, const void* from, size_t count);
using Find = size_t (*)(const void* from, size_t count);

// Between a float of 8 or 16 bits and a wide one.
struct Casts {
  Cast narrow, widen;
};

struct Row {
  Reduce reduce[kElementwiseOps];  // indexed by ReduceOp; nullptr: the dtype lacks this operation
  Scale scale;
  Divide divide;
  Casts float32, float64;  // of 8 and 16 bits: from these and to these
  Find not_finite;         // nullptr: the dtype has nothing but numbers
};

struct Table {
  Row rows[kDtypes];  // indexed by Dtype
};

}  // namespace ringdp::kernels
