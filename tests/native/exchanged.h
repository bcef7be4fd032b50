// What a task of a scenario exchanges: small integers, another one for each task, rank and index, and what has to come out
// of them, exactly.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "scenario.h"

namespace ringdp::tests {

// In elements of the dtype.
std::vector<std::byte> encoded(Dtype dtype, const std::vector<int64_t>& numbers);

std::vector<int64_t> contribution(const Scenario& scenario, int task, int rank);

// Of the ranks that submit it. rank: of the job.
std::vector<int64_t> expected(const Scenario& scenario, int task, int rank);

// All-to-all: rows from each place of the set to each.
uint64_t split(const Task& task, int from, int to);

// A vote's fields; all ranks hear the smallest of each.
std::vector<uint64_t> fields(int task, int rank);

}  // namespace ringdp::tests
