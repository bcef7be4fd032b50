// Elements that change nothing in a reduction.
#pragma once

#include <cstdint>

#include "base/dtype.h"

namespace ringdp {

void fill_neutral(void* data, uint64_t count, Dtype dtype, ReduceOp op);

}  // namespace ringdp
