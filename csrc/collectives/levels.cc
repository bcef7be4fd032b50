#include "collectives/levels.h"

#include <map>

namespace ringdp {

std::optional<Levels> levels_of(const std::vector<int>& host_of, int rank) {
  std::map<int, size_t> place_of;  // of the hosts, in the order of their first ranks
  std::vector<std::vector<int>> hosts;
  for (size_t r = 0; r < host_of.size(); ++r) {
    const size_t place = place_of.emplace(host_of[r], hosts.size()).first->second;
    if (place == hosts.size()) hosts.emplace_back();
    hosts[place].push_back(static_cast<int>(r));
  }
  if (hosts.size() < 2) return std::nullopt;
  Levels levels;
  for (size_t h = 0; h < hosts.size(); ++h) {
    if (hosts[h].size() < 2 || hosts[h].size() != hosts[0].size()) return std::nullopt;
    for (size_t place = 0; place < hosts[h].size(); ++place) {
      if (hosts[h][place] != rank) continue;
      levels.mates = hosts[h];
      levels.me = static_cast<int>(place);
      levels.host = static_cast<int>(h);
    }
  }
  for (const std::vector<int>& host : hosts) levels.ring.push_back(host[levels.me]);
  return levels;
}

}  // namespace ringdp
