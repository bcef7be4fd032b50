// What may come of a scenario, and whether it did.
//
// Of each task all ranks have the exact result, or all have an error, and one that is no bucket has then left their outputs
// as they were. Where a rank leaves, this holds for the others: its own caller has gone. Where a rank has stopped, what it
// was in the middle of may have ended on some ranks and not on others, until a deadline; wrong it is on none.
#pragma once

#include <string>
#include <vector>

#include "player.h"
#include "scenario.h"

namespace ringdp::tests {

// outcomes[task][rank]. "" or what is wrong.
std::string verdict(const Scenario& scenario, const std::vector<std::vector<Outcome>>& outcomes);

}  // namespace ringdp::tests
