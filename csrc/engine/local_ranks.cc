#include "engine/local_ranks.h"

#include <map>
#include <numeric>
#include <utility>

#include "collectives/levels.h"
#include "guard/watch.h"
#include "shared/mail.h"

namespace ringdp {

namespace {

// Rank r lives on hosts[r].
std::vector<Neighbourhood> local_hosts(const std::vector<int>& hosts) {
  const int size = static_cast<int>(hosts.size());
  std::vector<Neighbourhood> all(hosts.size());
  for (int r = 0; r < size; ++r) {
    all[r].host = std::make_shared<Host>(r, std::make_shared<Heap>(HeapKind::memfd));
    for (int other = 0; other < size; ++other)
      if (hosts[other] == hosts[r]) all[r].members.push_back(other);
  }
  for (int r = 0; r < size; ++r)
    for (const int member : all[r].members) {
      if (member == r) continue;
      const std::string reason = all[r].host->attach(member, all[member].host->heap().card());
      if (!reason.empty()) fail(ErrorKind::transport, reason);
    }
  return all;
}

// Mail for each rank's neighbours; ranks: theirs, in the same order.
void add_local_mail(std::vector<Neighbourhood>& neighbourhoods, const std::vector<int>& ranks) {
  std::map<int, uint64_t> mail;
  for (size_t r = 0; r < ranks.size(); ++r)
    if (neighbourhoods[r].host)
      mail[ranks[r]] = Mail::make(neighbourhoods[r].host->heap(), static_cast<int>(neighbourhoods[r].members.size()));
  for (Neighbourhood& one : neighbourhoods)
    for (const int member : one.members) one.mail_offsets.push_back(mail.at(member));
}

void add_local_levels(std::vector<Membership>& set, uint64_t delay_seed);

// By rank of the set.
std::vector<Membership> local_memberships(const std::vector<int>& ranks, uint64_t delay_seed,
                                          const std::vector<int>& hosts, std::vector<Neighbourhood> neighbourhoods,
                                          bool with_levels, const LocalFaults& faults = {}) {
  const int size = static_cast<int>(ranks.size());
  const auto data = make_local_hub(size, delay_seed, faults.data),
             control = make_local_hub(size, delay_seed * 31, faults.meetings);
  std::vector<Membership> all;
  for (int r = 0; r < size; ++r)
    all.push_back({ranks, make_local_transport(data, r), make_local_transport(control, r),
                   placement_on(hosts.empty() ? std::vector<int>(ranks.size()) : hosts), std::move(neighbourhoods[r]),
                   hosts});
  if (with_levels) add_local_levels(all, delay_seed);
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
  return local_memberships(ranks, delay_seed, hosts, std::move(neighbourhoods), false);
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

// Each reads the recorders of those with the same number in `hosts`, as ranks of a host do. Nobody needs a thread for that.
std::vector<std::shared_ptr<Watch>> local_watches(int size, const std::vector<int>& hosts) {
  std::vector<std::shared_ptr<Flight>> flights;
  std::vector<std::shared_ptr<Watch>> watches;
  std::vector<std::string> names;
  for (const int host : hosts) names.push_back("n" + std::to_string(host));
  for (int r = 0; r < size; ++r) {
    flights.push_back(std::make_shared<Flight>("", Flight::Owner{r, size, 0, 1, "local"}));
    watches.push_back(std::make_shared<Watch>(flights.back()));
    watches.back()->set_places(hosts, names);
  }
  for (int r = 0; r < size; ++r)
    for (int other = 0; other < size; ++other)
      if (other != r && hosts[other] == hosts[r]) watches[r]->attach(other, flights[other]);
  return watches;
}

bool has_levels(const Options& options) { return options.gpu_transport == GpuTransport::two_level; }

}  // namespace

std::vector<std::unique_ptr<Engine>> local_engines(const Options& options, int size, uint64_t delay_seed,
                                                   const std::vector<int>& hosts, const LocalFaults& faults) {
  std::vector<int> ranks(static_cast<size_t>(size));
  std::iota(ranks.begin(), ranks.end(), 0);
  std::vector<Neighbourhood> neighbourhoods =
      hosts.empty() ? std::vector<Neighbourhood>(ranks.size()) : local_hosts(hosts);
  add_local_mail(neighbourhoods, ranks);
  const std::vector<std::shared_ptr<Watch>> watches = local_watches(size, hosts.empty() ? ranks : hosts);
  std::vector<std::unique_ptr<Engine>> engines;
  for (Membership& membership :
       local_memberships(ranks, delay_seed, hosts, std::move(neighbourhoods), has_levels(options), faults)) {
    const uint32_t generation = faults.generations.empty() ? 0 : faults.generations.at(engines.size());
    engines.push_back(std::make_unique<Engine>(options, generation, std::move(membership), watches[engines.size()]));
  }
  return engines;
}

void add_local_process_set(int id, const std::vector<Engine*>& members, uint64_t delay_seed,
                           const std::vector<int>& hosts) {
  std::vector<int> ranks;
  for (const Engine* engine : members) ranks.push_back(engine->rank());
  std::vector<Neighbourhood> neighbourhoods(members.size());
  for (size_t r = 0; r < hosts.size(); ++r) {
    neighbourhoods[r].host = members[r]->host();
    for (size_t other = 0; other < members.size(); ++other)
      if (hosts[other] == hosts[r]) neighbourhoods[r].members.push_back(ranks[other]);
  }
  add_local_mail(neighbourhoods, ranks);
  std::vector<Membership> memberships =
      local_memberships(ranks, delay_seed, hosts, std::move(neighbourhoods), has_levels(members[0]->options()));
  for (size_t r = 0; r < members.size(); ++r) members[r]->add_process_set(id, std::move(memberships[r]));
}

}  // namespace ringdp
