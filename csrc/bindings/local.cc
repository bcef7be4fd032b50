// Ranks that are threads of this process, for tests: their engines and process sets over the local transport.
#include "bindings/local.h"

#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "base/options.h"
#include "bindings/host.h"
#include "bindings/members.h"
#include "collectives/levels.h"
#include "engine/engine.h"
#include "transport/local.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ringdp {

namespace {

void add_local_levels(std::vector<Membership>& set, uint64_t delay_seed);

// Over the local transport, for tests: by rank of the set.
std::vector<Membership> local_memberships(const std::vector<int>& ranks, uint64_t delay_seed,
                                          const std::vector<int>& hosts, std::vector<Neighbourhood> neighbourhoods) {
  const int size = static_cast<int>(ranks.size());
  const auto data = make_local_hub(size, delay_seed), control = make_local_hub(size, delay_seed * 31);
  std::vector<Membership> all;
  for (int r = 0; r < size; ++r)
    all.push_back({ranks, make_local_transport(data, r), make_local_transport(control, r),
                   placement_on(hosts.empty() ? std::vector<int>(ranks.size()) : hosts), std::move(neighbourhoods[r]),
                   hosts});
  if (options_from_environment().gpu_transport == GpuTransport::two_level) add_local_levels(all, delay_seed);
  return all;
}

// The memberships of `members` in a level of a set, given those in the set; they share memory if all are on one host.
std::vector<Membership> local_level(const std::vector<Membership>& set, const std::vector<int>& members,
                                    uint64_t delay_seed, bool in_host) {
  std::vector<int> ranks, hosts;
  for (const int member : members)
    ranks.push_back(set[member].ranks[member]), hosts.push_back(set[member].sharing[member]);
  std::vector<Neighbourhood> neighbourhoods(members.size());
  for (size_t m = 0; in_host && m < members.size(); ++m)
    neighbourhoods[m] = {set[members[m]].neighbourhood.host, ranks, {}};
  add_local_mail(neighbourhoods, ranks);
  return local_memberships(ranks, delay_seed, hosts, std::move(neighbourhoods));
}

// Each host's first rank makes the level for all of the host, and the first host's ranks those between the hosts.
void add_local_levels(std::vector<Membership>& set, uint64_t delay_seed) {
  for (size_t rank = 0; rank < set.size(); ++rank) {
    const auto levels = levels_of(set[0].sharing, static_cast<int>(rank));
    if (!levels) return;
    const auto add = [&](const std::vector<int>& members, std::unique_ptr<Membership> Membership::* which,
                         bool in_host) {
      std::vector<Membership> level = local_level(set, members, delay_seed, in_host);
      for (size_t m = 0; m < members.size(); ++m)
        set[members[m]].*which = std::make_unique<Membership>(std::move(level[m]));
    };
    if (levels->me == 0) add(levels->mates, &Membership::in_host, true);
    if (levels->host == 0) add(levels->ring, &Membership::between_hosts, false);
  }
}

// The engines of `size` ranks in this process, for tests: they talk over the local transport, and those with the same
// number in `hosts` (empty: none) share memory, each by a mapping of its own.
std::vector<std::unique_ptr<Engine>> local_engines(int size, uint64_t delay_seed, const std::vector<int>& hosts) {
  const Options options = options_from_environment();
  std::vector<int> ranks(size);
  std::iota(ranks.begin(), ranks.end(), 0);
  std::vector<std::unique_ptr<Engine>> engines;
  for (Membership& membership : local_memberships(
           ranks, delay_seed, hosts, hosts.empty() ? std::vector<Neighbourhood>(size) : local_hosts(hosts)))
    engines.push_back(std::make_unique<Engine>(options, 0, std::move(membership)));
  return engines;
}

// A process set over the local transport for the engines of its members, in rank order.
void add_local_process_set(int id, const std::vector<Engine*>& members, const std::vector<int>& hosts) {
  std::vector<int> ranks;
  for (const Engine* engine : members) ranks.push_back(engine->rank());
  std::vector<Neighbourhood> neighbourhoods(members.size());
  if (!hosts.empty())
    for (size_t r = 0; r < members.size(); ++r) {
      neighbourhoods[r].host = members[r]->host();
      for (size_t other = 0; other < members.size(); ++other)
        if (hosts[other] == hosts[r]) neighbourhoods[r].members.push_back(ranks[other]);
    }
  add_local_mail(neighbourhoods, ranks);
  std::vector<Membership> memberships = local_memberships(ranks, 0, hosts, std::move(neighbourhoods));
  for (size_t r = 0; r < members.size(); ++r) members[r]->add_process_set(id, std::move(memberships[r]));
}

}  // namespace

void bind_local(nb::module_& m) {
  m.def("local_engines", &local_engines, "size"_a, "delay_seed"_a, "hosts"_a = std::vector<int>());
  m.def("add_local_process_set", &add_local_process_set, "id"_a, "members"_a, "hosts"_a = std::vector<int>());
}

}  // namespace ringdp
