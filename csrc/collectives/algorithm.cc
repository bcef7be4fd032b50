#include "collectives/algorithm.h"

#include "base/check.h"
#include "collectives/partners.h"

namespace ringdp {

const std::vector<AlgorithmRow>& algorithm_table() {
  static const std::vector<AlgorithmRow> table = {
      {Algorithm::ring, "ring", ring_allreduce, nullptr, ring_cost, "its latency grows with the number of ranks"},
      {Algorithm::shared_memory, "shared_memory", nullptr, nullptr, shared_memory_cost,
       "one host whose ranks share memory"},
      {Algorithm::two_level, "two_level", nullptr, nullptr, two_level_cost, "several hosts that share memory each"},
      {Algorithm::recursive_doubling, "recursive_doubling", recursive_doubling, power_of_two_partners,
       recursive_doubling_cost, "sends the whole tensor log2 N times"},
      {Algorithm::halving_doubling, "halving_doubling", halving_doubling, power_of_two_partners, halving_doubling_cost,
       "sends half as much again, or more, unless the ranks are a power of two"},
      {Algorithm::double_tree, "double_tree", double_tree, double_tree_partners, double_tree_cost,
       "a rank has up to six neighbours"},
  };
  return table;
}

const AlgorithmRow& row_of(Algorithm algorithm) {
  const AlgorithmRow& row = algorithm_table().at(static_cast<size_t>(algorithm));
  RINGDP_CHECK(row.algorithm == algorithm);
  return row;
}

const char* name_of(Algorithm algorithm) { return row_of(algorithm).name; }

Algorithm algorithm_of(const std::string& name) {
  std::string names;
  for (const AlgorithmRow& row : algorithm_table()) {
    if (row.name == name) return row.algorithm;
    names += std::string(names.empty() ? "" : ", ") + row.name;
  }
  fail(ErrorKind::usage, "RINGDP_ALGORITHM=", name, " is not one of auto, ", names);
}

}  // namespace ringdp
