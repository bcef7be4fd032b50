#include "shared/host.h"

#include <utility>

namespace ringdp {

std::string Host::attach(int rank, const HeapCard& card) {
  std::string reason;
  auto heap = PeerHeap::map(card, reason);
  if (heap != nullptr) peers_[rank] = std::move(heap);
  return reason;
}

}  // namespace ringdp
