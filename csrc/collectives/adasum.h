// Adasum of two tensors: what they have in common counts once, what is orthogonal is added.
//
//   to = (1 - a·b / 2|a|²) a + (1 - a·b / 2|b|²) b        (a tensor that is zero leaves the other as it is)
//
// S. Maleki et al., "Scaling Distributed Training with Adaptive Summation", MLSys 2021, equation 7. All arithmetic is in
// float64, in a fixed order, and the result is rounded once: so whoever has a and b, in this order, gets the same bits.
#pragma once

#include <cstdint>

#include "base/dtype.h"

namespace ringdp {

// Floats only. `to` may be `a` or `b`.
void adasum(Dtype dtype, void* to, const void* a, const void* b, uint64_t count);

}  // namespace ringdp
