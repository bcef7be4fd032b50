// Inputs made from a corpus of right ones: number i is the same each time.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ringdp::fuzz {

std::string mutated(const std::vector<std::string>& corpus, uint64_t number);

}  // namespace ringdp::fuzz
