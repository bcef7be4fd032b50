// The ranks that have proved to share memory with this one, itself included: their heaps as mapped here, and whether their
// processes are alive.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "shared/heap.h"

namespace ringdp {

class Host {
 public:
  Host(int rank, std::shared_ptr<Heap> heap) : rank_(rank), heap_(std::move(heap)) {}
  ~Host();
  Host(const Host&) = delete;
  Host& operator=(const Host&) = delete;

  // Maps a peer's heap; the reason if it does not share memory with this rank. Before the engine starts.
  std::string attach(int rank, const HeapCard& card);

  Heap& heap() const { return *heap_; }
  const std::shared_ptr<Heap>& shared_heap() const { return heap_; }
  HeapHead& head(int rank) const { return rank == rank_ ? heap_->head() : peers_.at(rank).heap->head(); }
  std::byte* at(int rank, uint64_t offset) const {
    return rank == rank_ ? heap_->at(offset) : peers_.at(rank).heap->at(offset);
  }

  // Whether a peer has memory there: what it has told of a place may be anything.
  bool holds(int rank, uint64_t offset, uint64_t bytes) const {
    return rank == rank_ ? heap_->holds(offset, bytes) : peers_.at(rank).heap->holds(offset, bytes);
  }

  // Peers whose process has ended; looks at most once in 10 ms, and finds none in between.
  struct Dead {
    int rank, pid;
  };
  std::vector<Dead> find_dead();

 private:
  struct Peer {
    std::unique_ptr<PeerHeap> heap;
    int pid = 0, pidfd = -1;
  };

  const int rank_;
  const std::shared_ptr<Heap> heap_;
  std::map<int, Peer> peers_;
  Clock::time_point last_look_{};
};

}  // namespace ringdp
