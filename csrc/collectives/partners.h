// Whom a rank exchanges messages with, both ways, whatever the count: the header goes to them, so that ranks which
// differ in the count find each other.
#pragma once

#include <vector>

namespace ringdp {

std::vector<int> power_of_two_partners(int ranks, int rank);  // recursive_doubling, halving_doubling
std::vector<int> double_tree_partners(int ranks, int rank);

}  // namespace ringdp
