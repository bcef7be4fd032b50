// The floor for ordinary tensors: they pass, segment by segment, through a small area that the ranks of a host share and
// that stays in the caches. Three segments are under way at a time: while one is copied in, the one before is reduced and
// the one before that is copied out; one barrier a segment.
//
//   turn      0        1        2        3
//   segment 0 copy in  reduce   copy out
//   segment 1          copy in  reduce   copy out
//
// Two ranks need no turn for reducing: each adds what the other has copied in to its own, and a + b = b + a.

#include <algorithm>
#include <cstring>

#include "team.h"

namespace {

constexpr int kSlots = 3;

struct Area {
  float* slots;  // kSlots segments of each rank
  size_t segment;

  float* slot(int rank, size_t turn) const { return slots + (rank * kSlots + turn % kSlots) * segment; }
};

void add(float* __restrict to, const float* __restrict from, size_t count) {
  for (size_t i = 0; i < count; i++) to[i] += from[i];
}

void two_ranks(Team* team, const Area& area, int rank, float* tensor, size_t count) {
  const size_t segments = (count + area.segment - 1) / area.segment;
  const auto length = [&](size_t s) { return std::min(area.segment, count - s * area.segment); };
  for (size_t turn = 0; turn <= segments; turn++) {
    if (turn < segments) {
      std::memcpy(area.slot(rank, turn), tensor + turn * area.segment, length(turn) * sizeof(float));
    }
    if (turn > 0) {
      add(tensor + (turn - 1) * area.segment, area.slot(1 - rank, turn - 1), length(turn - 1));
    }
    barrier(team, 2);
  }
}

void many_ranks(Team* team, const Area& area, int rank, int ranks, float* tensor, size_t count) {
  const size_t segments = (count + area.segment - 1) / area.segment;
  const auto length = [&](size_t s) { return std::min(area.segment, count - s * area.segment); };
  for (size_t turn = 0; turn < segments + 2; turn++) {
    if (turn < segments) {
      std::memcpy(area.slot(rank, turn), tensor + turn * area.segment, length(turn) * sizeof(float));
    }
    if (turn >= 1 && turn - 1 < segments) {
      const size_t n = length(turn - 1), begin = part(n, rank, ranks), end = part(n, rank + 1, ranks);
      for (int other = 0; other < ranks; other++) {
        if (other == rank) continue;
        add(area.slot(rank, turn - 1) + begin, area.slot(other, turn - 1) + begin, end - begin);
      }
    }
    if (turn >= 2) {
      const size_t n = length(turn - 2);
      for (int owner = 0; owner < ranks; owner++) {
        const size_t begin = part(n, owner, ranks), end = part(n, owner + 1, ranks);
        std::memcpy(tensor + (turn - 2) * area.segment + begin, area.slot(owner, turn - 2) + begin,
                    (end - begin) * sizeof(float));
      }
    }
    barrier(team, ranks);
  }
}

}  // namespace

// `shared`: a Team, then from kTeamBytes on three segments of `segment` floats for each rank.
extern "C" void staged(void* shared, size_t segment, int rank, int ranks, float* tensor, size_t count) {
  const Area area{reinterpret_cast<float*>(static_cast<char*>(shared) + kTeamBytes), segment};
  Team* team = team_of(shared);
  barrier(team, ranks);
  if (ranks == 2) {
    two_ranks(team, area, rank, tensor, count);
  } else {
    many_ranks(team, area, rank, ranks, tensor, count);
  }
  barrier(team, ranks);
}
