#include "collectives/sweep.h"

#include <algorithm>
#include <random>

namespace ringdp::simulate {
namespace {

// `total` elements over `parts`, in any way, some of them empty.
std::vector<uint64_t> random_parts(uint64_t total, int parts, std::mt19937_64& random) {
  std::vector<uint64_t> counts(parts, 0);
  while (total > 0) {
    const uint64_t n = 1 + random() % total;
    counts[random() % parts] += n;
    total -= n;
  }
  return counts;
}

std::vector<uint64_t> equal_parts(uint64_t total, int parts) {
  std::vector<uint64_t> counts;
  for (int i = 0; i < parts; ++i) {
    const Chunk chunk = chunk_of(total, parts, i);
    counts.push_back(chunk.end - chunk.begin);
  }
  return counts;
}

// The ways to divide `count` elements in this collective.
std::vector<std::vector<uint64_t>> divisions(Collective collective, int ranks, uint64_t count,
                                             std::mt19937_64& random) {
  if (collective == Collective::allreduce || collective == Collective::broadcast) return {{count}};
  if (collective != Collective::alltoall) return {equal_parts(count, ranks), random_parts(count, ranks, random)};
  std::vector<uint64_t> equal, uneven;
  for (int r = 0; r < ranks; ++r) {
    for (uint64_t n : equal_parts(count, ranks)) equal.push_back(n);
    for (uint64_t n : random_parts(random() % (count + 1), ranks, random)) uneven.push_back(n);
  }
  return {equal, uneven};
}

// All segments that are not shorter than the longest part that is cut are alike: the first of them stands for all.
std::vector<uint64_t> different(const std::vector<uint64_t>& segments, const Case& c) {
  uint64_t longest = *std::max_element(c.counts.begin(), c.counts.end());
  const bool by_chunks = c.sharing == Sharing::direct || c.sharing == Sharing::staged ||
                         (c.sharing == Sharing::none && c.algorithm == Algorithm::ring);
  if (c.collective == Collective::allreduce && by_chunks) longest = chunk_of(longest, c.ranks, 0).end;
  std::vector<uint64_t> kept;
  bool whole = false;
  for (uint64_t segment : segments) {
    if (segment < longest || !whole) kept.push_back(segment);
    whole |= segment >= longest;
  }
  return kept;
}

// The variants of a case that is cut and divided: each is called once.
template <class Use>
void for_each_variant(Case c, bool every_root, const Use& use) {
  const bool reduces = c.collective == Collective::allreduce || c.collective == Collective::reduce_scatter;
  const bool can_be_in_place = c.collective == Collective::allreduce || c.collective == Collective::broadcast;
  for (int variant = 0; variant < 8; ++variant) {
    c.arithmetic = {(variant & 1) != 0, (variant & 2) != 0};
    c.in_place = (variant & 4) != 0;
    if (!reduces && (variant & 3)) continue;
    if (!can_be_in_place && c.in_place) continue;
    if ((only_in_place(c.sharing) || c.half != Half::both) && !c.in_place) continue;
    if (c.half == Half::all_gather && (variant & 3)) continue;
    for (c.root = 0; c.root < (every_root ? c.ranks : 1); ++c.root) use(c);
  }
}

}  // namespace

uint64_t sweep(const Case& like, uint64_t max_count, const std::vector<uint64_t>& segments,
               const std::vector<int>& depths, uint64_t seed) {
  std::mt19937_64 random(seed);
  uint64_t cases = 0;
  Case c = like;
  for (uint64_t count = 0; count <= max_count; ++count)
    for (const std::vector<uint64_t>& counts : divisions(c.collective, c.ranks, count, random)) {
      c.counts = counts;
      for (uint64_t segment : different(segments, c))
        for (int depth : depths) {
          c.pipeline = {segment, depth};
          const bool every_root = c.collective == Collective::broadcast && depth == depths.front();
          for_each_variant(c, every_root, [&](const Case& one) { check(one, schedules_of(one), seed + cases++, 1); });
        }
    }
  return cases;
}

}  // namespace ringdp::simulate
