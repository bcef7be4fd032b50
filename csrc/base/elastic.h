// Whether the job goes on without ranks that are lost: `ringdp run --elastic` says so to its ranks. ringdp/recovery.py reads
// it in the same way.
#pragma once

#include <cstdlib>
#include <string>

namespace ringdp {

inline bool goes_on_without_lost_ranks() {
  const char* given = std::getenv("RINGDP_ELASTIC");
  return given != nullptr && *given != '\0' && given != std::string("0");
}

}  // namespace ringdp
