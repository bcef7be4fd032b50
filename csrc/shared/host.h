// The ranks that have proved to share memory with this one, itself included: their heaps as mapped here.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "shared/heap.h"

namespace ringdp {

class Host {
 public:
  Host(int rank, std::shared_ptr<Heap> heap) : rank_(rank), heap_(std::move(heap)) {}
  Host(const Host&) = delete;
  Host& operator=(const Host&) = delete;

  // Maps a peer's heap; the reason if it does not share memory with this rank. Before the engine starts.
  std::string attach(int rank, const HeapCard& card);

  Heap& heap() const { return *heap_; }
  const std::shared_ptr<Heap>& shared_heap() const { return heap_; }
  HeapHead& head(int rank) const { return rank == rank_ ? heap_->head() : peers_.at(rank)->head(); }
  std::byte* at(int rank, uint64_t offset) const {
    return rank == rank_ ? heap_->at(offset) : peers_.at(rank)->at(offset);
  }

  // Whether a peer has memory there: what it has told of a place may be anything.
  bool holds(int rank, uint64_t offset, uint64_t bytes) const {
    return rank == rank_ ? heap_->holds(offset, bytes) : peers_.at(rank)->holds(offset, bytes);
  }

 private:
  const int rank_;
  const std::shared_ptr<Heap> heap_;
  std::map<int, std::unique_ptr<PeerHeap>> peers_;
};

}  // namespace ringdp
