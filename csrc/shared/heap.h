// A rank's heap: memory that the other ranks of its host can map, one per rank and generation.
//
// Address space for the whole heap is reserved at once; memory is, piece by piece, when it is asked for, and reserving it
// is what fails where there is none: whoever touches it later is safe from SIGBUS. A place in a heap is (rank, offset), and
// the same on all ranks, wherever each has mapped it. Blocks are given and taken back by the owner alone, from any thread.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

#include "shared/bell.h"

namespace ringdp {

// Where the memory comes from: an anonymous file, which peers open through /proc/<pid>/fd; or, where they may not (other
// process namespaces), a file under /dev/shm, which is unlinked as soon as all have opened it.
enum class HeapKind { memfd, file };

// What another process needs to map a heap, and to be sure that it is the one that was meant.
struct HeapCard {
  static constexpr uint32_t kVersion = 2;
  uint32_t version = kVersion;
  HeapKind kind = HeapKind::memfd;
  int32_t pid = 0, fd = -1;
  uint64_t pid_space = 0;  // the process namespace in which pid is this process; 0: not known
  uint64_t capacity = 0;
  uint64_t token[2] = {};  // random, and written at the start of the heap: only who maps these very pages can read it
  char name[48] = {};      // of the file
};

// The first bytes of every heap.
struct HeapHead {
  uint64_t token[2];
  alignas(64) Bell bell;                  // rung by peers
  alignas(64) std::atomic<uint64_t> end;  // there is memory up to here; written by the owner alone
};

inline bool lies_below(uint64_t offset, uint64_t bytes, uint64_t end) { return offset <= end && bytes <= end - offset; }

class Heap {
 public:
  static constexpr uint64_t kNowhere = ~uint64_t{0};

  // Throws ErrorKind::transport where the system gives no such memory.
  explicit Heap(HeapKind kind);
  ~Heap();
  Heap(const Heap&) = delete;
  Heap& operator=(const Heap&) = delete;

  const HeapCard& card() const { return card_; }
  HeapHead& head() const { return *reinterpret_cast<HeapHead*>(base_); }
  std::byte* at(uint64_t offset) const { return base_ + offset; }
  bool holds(uint64_t offset, uint64_t bytes) const { return lies_below(offset, bytes, reserved()); }
  void unlink();  // the file's name, once all who need it have opened it

  // Zeroed when it is new; aligned to a page from a page on, else to a cache line. nullptr where memory is lacking.
  void* allocate(size_t bytes);
  void free(void* block);

  // The offset of these bytes, or kNowhere if they are not all in this heap.
  uint64_t offset_of(const void* data, size_t bytes) const;
  uint64_t reserved() const { return head().end.load(std::memory_order_acquire); }

 private:
  struct Free {
    uint64_t bytes;
    bool hollow;  // some of its pages were given back to the system
  };
  using FreeList = std::map<uint64_t, Free>;

  bool reserve(uint64_t offset, uint64_t bytes);
  bool grow(uint64_t bytes);
  void give_back(uint64_t offset, uint64_t bytes, bool hollow);

  HeapCard card_;
  int fd_ = -1;
  std::byte* base_ = nullptr;
  mutable std::mutex mutex_;
  uint64_t end_ = 0;   // memory is reserved up to here
  uint64_t idle_ = 0;  // bytes in free blocks that still hold memory
  FreeList free_;
  std::unordered_map<uint64_t, uint64_t> taken_;  // offset → bytes
};

// Another rank's heap, as this process has mapped it.
class PeerHeap {
 public:
  // nullptr, with the reason, where it cannot be mapped or is not the one that the card names.
  static std::unique_ptr<PeerHeap> map(const HeapCard& card, std::string& reason);
  ~PeerHeap();
  PeerHeap(const PeerHeap&) = delete;
  PeerHeap& operator=(const PeerHeap&) = delete;

  HeapHead& head() const { return *reinterpret_cast<HeapHead*>(base_); }
  std::byte* at(uint64_t offset) const { return base_ + offset; }
  bool holds(uint64_t offset, uint64_t bytes) const {
    return lies_below(offset, bytes, std::min(head().end.load(std::memory_order_acquire), capacity_));
  }

 private:
  PeerHeap(std::byte* base, uint64_t capacity) : base_(base), capacity_(capacity) {}
  std::byte* const base_;
  const uint64_t capacity_;
};

}  // namespace ringdp
