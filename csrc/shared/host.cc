#include "shared/host.h"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace ringdp {

namespace {

// -1 where the peer's end cannot be seen: on kernels before 5.3, and where its number means another process here, or none.
// Then only the deadline tells.
int open_pidfd(const HeapCard& peer, const HeapCard& mine) {
  if (peer.pid_space != mine.pid_space || mine.pid_space == 0) return -1;
  return static_cast<int>(syscall(SYS_pidfd_open, peer.pid, 0));
}

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
  if (card.pid != getpid()) peer.pidfd = open_pidfd(card, heap_->card());
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
