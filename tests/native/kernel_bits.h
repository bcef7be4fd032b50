// Inputs at which results could differ between CPUs, and all that the kernels make of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/dtype.h"

namespace ringdp::tests {

using Bytes = std::vector<unsigned char>;

// `count` elements, the same on every machine: random bits, a third of them patterns at which something changes (ends
// of the range, signs, infinities, NaNs, subnormals), and for the wide floats a third with exponents near each other.
Bytes patterns(Dtype dtype, size_t count, uint64_t seed);

// Calls `use(what, result)` for every operation that the dtype has, under the variant that is chosen: each reduction,
// scale by factors and divide by ranks, whose extremes are among them. Every result begins at an odd address. For 16
// bits all 65536 patterns are among the inputs.
void all_results(Dtype dtype, const std::function<void(const std::string& what, const Bytes& result)>& use);

// Of all results of all dtypes under the best variant: the same number on every machine.
uint64_t digest_of_kernels();

}  // namespace ringdp::tests
