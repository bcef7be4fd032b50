// In words, in what the submissions of several ranks differ.
#pragma once

#include <string>
#include <vector>

namespace ringdp {

// descriptions: by rank, one line or several. A line of text for each group of ranks that say the same in the first line in
// which not all are equal.
std::string differences(const std::vector<std::string>& descriptions);

}  // namespace ringdp
