// Ranks that are threads of this process, for tests: their engines and process sets over the local transport. Those with
// the same number in `hosts` (empty: none) share memory, each by a mapping of its own.
#pragma once

#include <memory>
#include <vector>

#include "base/options.h"
#include "engine/engine.h"
#include "transport/local.h"

namespace ringdp {

// What goes wrong between them.
struct LocalFaults {
  OnTheWay data, meetings;            // what happens to their messages: see transport/local.h
  std::vector<uint32_t> generations;  // by rank; empty: 0
};

// By rank. delay_seed: see transport/local.h.
std::vector<std::unique_ptr<Engine>> local_engines(const Options& options, int size, uint64_t delay_seed,
                                                   const std::vector<int>& hosts, const LocalFaults& faults = {});

// For the engines of its members, in rank order; hosts: those of the members.
void add_local_process_set(int id, const std::vector<Engine*>& members, uint64_t delay_seed,
                           const std::vector<int>& hosts);

}  // namespace ringdp
