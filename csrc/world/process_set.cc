#include "world/process_set.h"

namespace ringdp {

Placement placement_of(const Membership& m) {
  Placement placement = m.placement;
  placement.shared_memory = m.neighbourhood.members.size() == m.ranks.size();
  placement.two_levels = levels_of(m.sharing, 0).has_value();
  return placement;
}

// The ranks of this host that are in the set meet by letters, or at least tell each other their places.
void ProcessSet::join_neighbours(const Neighbourhood& neighbourhood) {
  std::vector<int> places = neighbourhood.members;
  if (size() == 1) places = ranks;
  if (places.empty() || (places.size() == 1 && size() > 1)) return;
  std::vector<int> mates;
  std::vector<std::byte*> parts;
  int me = 0;
  for (size_t m = 0; m < places.size(); ++m) {
    const auto place = std::lower_bound(ranks.begin(), ranks.end(), places[m]);
    mates.push_back(static_cast<int>(place - ranks.begin()));
    if (mates.back() == rank()) me = static_cast<int>(m);
    if (places.size() > 1) parts.push_back(neighbourhood.host->at(places[m], neighbourhood.mail_offsets[m]));
  }
  letters = std::make_unique<Letters>(neighbourhood.host, mates, places, me, parts);
  if (neighbourhood.host) counts = std::make_unique<Counts>(neighbourhood.host->heap());
}

}  // namespace ringdp
