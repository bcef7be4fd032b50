#include "world/process_set.h"

#include <map>

#include "world/gpus.h"

namespace ringdp {

ProcessSet::ProcessSet(int id, Membership made_of, Chooser chooser, bool checks_messages, Doubling::Merge merge)
    : id(id),
      ranks(std::move(made_of.ranks)),
      members(static_cast<int>(ranks.size())),
      chooser(std::move(chooser)),
      checks_messages(checks_messages),
      data(std::move(made_of.data)),
      control(std::move(made_of.control)),
      doubling(*control, kMeetingsTag, checks_messages, std::move(merge)),
      tickets(named_tags()) {
  data->call_ranks(ranks);
  control->call_ranks(ranks);
  join_neighbours(made_of.neighbourhood);
  if (letters) levels = levels_of(made_of.sharing, rank());
  meetings().draw_ticket = [this] { return tickets.draw(false).value_or(Note::kNoTicket); };
}

ProcessSet::~ProcessSet() = default;

Placement placement_of(const Membership& m) {
  Placement placement = m.placement;
  placement.shared_memory = m.neighbourhood.members.size() == m.ranks.size();
  placement.two_levels = levels_of(m.sharing, 0).has_value();
  return placement;
}

Placement placement_on(const std::vector<int>& hosts) {
  std::map<int, int> ranks_of;
  int most = 0;
  for (const int host : hosts) most = std::max(most, ++ranks_of[host]);
  return {static_cast<int>(hosts.size()), static_cast<int>(ranks_of.size()), most};
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

std::string ProcessSet::has_left(int member) const {
  const uint64_t steps = member == meetings().first_left() ? meetings().first_left_after() : 0;
  return "rank " + std::to_string(data->name_of(member)) + " has shut ringdp down" +
         (steps > 0 ? " after step " + std::to_string(steps) : "");
}

std::string ProcessSet::because() const {
  const int gone = meetings().first_left();
  return gone < 0 ? "" : ": " + has_left(gone);
}

}  // namespace ringdp
