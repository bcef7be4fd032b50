#include "shared/host.h"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace ringdp {

namespace {

// -1 on kernels before 5.3: then only the deadline tells.
int open_pidfd(int pid) { return static_cast<int>(syscall(SYS_pidfd_open, pid, 0)); }

}  // namespace

Host::~Host() {
  for (auto& [rank, peer] : peers_)
    if (peer.pidfd >= 0) close(peer.pidfd);
}

std::string Host::attach(int rank, const HeapCard& card) {
  std::string reason;
  Peer peer;
  peer.heap = PeerHeap::map(card, reason);
  if (peer.heap == nullptr) return reason;
  peer.pid = card.pid;
  if (card.pid != getpid()) peer.pidfd = open_pidfd(card.pid);
  peers_[rank] = std::move(peer);
  return "";
}

std::vector<Host::Dead> Host::find_dead() {
  std::vector<Dead> dead;
  const auto now = Clock::now();
  if (now - last_look_ < std::chrono::milliseconds(10)) return dead;
  last_look_ = now;
  for (const auto& [rank, peer] : peers_) {
    pollfd look{peer.pidfd, POLLIN, 0};
    if (peer.pidfd >= 0 && poll(&look, 1, 0) == 1) dead.push_back({rank, peer.pid});
  }
  return dead;
}

}  // namespace ringdp
