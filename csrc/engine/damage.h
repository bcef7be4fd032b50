// What all ranks know at the end of a run whose messages carry checksums: whether one was damaged between any two of them.
#pragma once

#include <cstddef>

namespace ringdp {

// Two payloads of the meeting about it, on their way to all: `mine` becomes what both know.
void merge_damage(std::byte* mine, const std::byte* theirs);

}  // namespace ringdp
