// A hash of memory, to tell whether ranks hold the same bits.
//
// XXH64 (Yann Collet, "xxHash fast digest algorithm", specification 0.1.1): the same number on all machines, four chains of
// multiplications side by side (docs/checks.md has the figures). It finds errors, not people who make them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ringdp::kernels {

uint64_t hash(const void* from, size_t bytes, uint64_t seed);

}  // namespace ringdp::kernels
