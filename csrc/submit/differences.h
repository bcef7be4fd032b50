// In words, in what the submissions of several ranks differ.
#pragma once

#include <string>
#include <vector>

namespace ringdp {

// descriptions: by rank, one line or several; names: what each rank is called. A line of text for each group of ranks that
// say the same in the first line in which not all are equal.
std::string differences(const std::vector<std::string>& descriptions, const std::vector<int>& names);

}  // namespace ringdp
