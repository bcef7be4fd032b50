// Who is on which host, as Python tells it.
#pragma once

#include <algorithm>
#include <map>
#include <vector>

#include "world/process_set.h"

namespace ringdp {

// Ranks on the hosts of these numbers.
inline Placement placement_on(const std::vector<int>& hosts) {
  std::map<int, int> ranks_of;
  int most = 0;
  for (const int host : hosts) most = std::max(most, ++ranks_of[host]);
  return {static_cast<int>(hosts.size()), static_cast<int>(ranks_of.size()), most};
}

}  // namespace ringdp
