// Plays a scenario on engines in this process, and says whether what came out is what may come out.
//
// In turns, one thread takes the turns of all ranks, in an order that the seed gives: so a seed does the same again, but
// for deadlines. In threads, each rank's caller is one, beside the engine's own: so the orders are those that the machine
// makes, and ThreadSanitizer sees them.
#pragma once

#include <cstdint>
#include <string>

namespace ringdp::tests {

enum class Way { turns, threads };

// "", or what is wrong: a wrong result, an error where there must be none or none where there must be one, ranks that end
// in different ways, something that does not end.
std::string play(uint64_t seed, Way way);

// Seeds from `first` on, so many or for so long; throws at the first that is wrong, and says how to repeat it. A line about
// how far it is every ten seconds.
void play_many(uint64_t first, uint64_t count, double seconds, Way way);

}  // namespace ringdp::tests
