// The all-reduce algorithms: a row each in the table of algorithm.cc. To add one: its file, its number here, its row.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "collectives/cost.h"
#include "collectives/schedule.h"

namespace ringdp {

enum class Algorithm : uint8_t {
  ring = 0,
  shared_memory = 1,
  two_level = 2,
  recursive_doubling = 3,
  halving_doubling = 4,
  double_tree = 5,
};

using MakeSchedule = Schedule (*)(int ranks, int rank, uint64_t count, Pipeline, Arithmetic, bool in_place);
using PredictCost = double (*)(const Placement&, uint64_t bytes, Dtype, const Profile&);
using FindPartners = std::vector<int> (*)(int ranks, int rank);

struct AlgorithmRow {
  Algorithm algorithm;
  const char* name;        // as in RINGDP_ALGORITHM
  MakeSchedule schedule;   // null: not a schedule of messages alone, or not there yet
  FindPartners partners;   // whom a rank exchanges messages with, whatever the count; null: its ring neighbours
  PredictCost cost;        // seconds
  const char* limitation;  // where it cannot run or should not, in words
};

const std::vector<AlgorithmRow>& algorithm_table();  // in the order of their numbers
const AlgorithmRow& row_of(Algorithm algorithm);
const char* name_of(Algorithm algorithm);

// Throws (usage) for a name that is not in the table.
Algorithm algorithm_of(const std::string& name);

}  // namespace ringdp
