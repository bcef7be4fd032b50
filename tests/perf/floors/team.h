// The ranks of one host that run a floor together: a barrier in memory that they share.
#pragma once

#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

// Lies at the beginning of the shared memory, all zeros at first.
struct Team {
  alignas(64) std::atomic<uint32_t> arrived;
  alignas(64) std::atomic<uint32_t> round;
};

constexpr size_t kTeamBytes = 4096;

inline Team* team_of(void* shared) { return static_cast<Team*>(shared); }

// Returns when all `ranks` have called it. Spins for a while, then yields, then sleeps; where there are more ranks than
// cores, it yields at once.
inline void barrier(Team* team, int ranks) {
  static const long cores = sysconf(_SC_NPROCESSORS_ONLN);
  const int patience = ranks <= cores ? 4000 : 10;
  const uint32_t round = team->round.load(std::memory_order_acquire);
  if (team->arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(ranks)) {
    team->arrived.store(0, std::memory_order_relaxed);
    team->round.fetch_add(1, std::memory_order_release);
    return;
  }
  for (int looks = 0; team->round.load(std::memory_order_acquire) == round; looks++) {
    if (looks < patience) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    } else if (looks < patience + 500) {
      sched_yield();
    } else {
      usleep(50);  // others than the team want the cores: who yields to them may keep a member waiting
    }
  }
}

// The part of `count` elements that rank r works on begins here; whole cache lines.
inline size_t part(size_t count, int rank, int ranks) { return rank == ranks ? count : count * rank / ranks / 16 * 16; }
