// What all ranks know at the end of a run whose messages carry checksums: whether one was damaged between any two of them.
#pragma once

#include <cstddef>

#include "base/options.h"
#include "collectives/choice.h"

namespace ringdp {

// Whether the messages of a process set carry checksums: the same on all its ranks.
bool checks_messages(Checksum option, const Chooser& chooser);

// Two payloads of a verdict on their way to all: `mine` becomes what both know.
void merge_verdicts(std::byte* mine, const std::byte* theirs);

}  // namespace ringdp
