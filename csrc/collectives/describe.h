// Moves and regions in words, for errors and for whoever looks at a schedule.
#pragma once

#include <string>

#include "collectives/schedule.h"

namespace ringdp {

const char* name_of(Place place);
std::string describe(const Region& region);  // like "output 3", "rank 2's area 5"
std::string describe(const Move& move);      // like "copy 2 elements, input 0 to rank 2's area 5"

}  // namespace ringdp
