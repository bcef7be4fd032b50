// What an engine has done so far, for whoever wants to know how much of it is agreement. Each is written under one lock (what
// is submitted: that of the callers; the others: that of who takes turns), and read from any thread.
#pragma once

#include <atomic>
#include <cstdint>

namespace ringdp {

struct Counters {
  std::atomic<uint64_t> named{0};    // named operations that were submitted here
  std::atomic<uint64_t> buckets{0};  // of plans
  std::atomic<uint64_t> votes{0};    // that this rank gave
  std::atomic<uint64_t> damage{0};   // meetings about it, at the end of runs whose messages carry checksums
  std::atomic<uint64_t> places{0};   // operations whose memory the ranks of the host had to tell each other by itself
  std::atomic<uint64_t> own{0};      // named operations that their caller took, instead of the engine's thread
  std::atomic<uint64_t> in_host{0};  // all-reduces that used memory which the ranks of a host share

  // Operations on GPU tensors, by who carries them out: see engine/launch.h, engine/direct.h.
  std::atomic<uint64_t> by_nccl{0}, by_chunks{0}, by_mpi{0}, by_host_memory{0};
  // Their steps are counted above, too; and here those in a host that began while a chunk of the same was between hosts.
  std::atomic<uint64_t> by_two_levels{0}, overlapped{0};

  static void add(std::atomic<uint64_t>& counter) {  // one writer at a time: no read-modify-write is needed
    counter.store(counter.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  }
};

}  // namespace ringdp
