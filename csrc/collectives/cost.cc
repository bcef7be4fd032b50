#include "collectives/cost.h"

#include <algorithm>

namespace ringdp {

namespace {

// Narrow floats are widened, added and rounded: measured, an element of 16 bits costs as much as one of float32.
double adding(uint64_t bytes, Dtype dtype, const Profile& profile) {
  const int widened = !is_float(dtype) || dtype == Dtype::float64 ? 1 : static_cast<int>(4 / size_of(dtype));
  return static_cast<double>(bytes) * widened / profile.reduce;
}

int log2_up(int n) {
  int levels = 0;
  while ((int64_t{1} << levels) < n) ++levels;
  return levels;
}

int log2_down(int n) { return log2_up(n + 1) - 1; }

// The link between ranks whose numbers differ by `distance`; with p ranks a host that all send to another host at a
// time, each has its share of it.
Link link_at(int distance, const Placement& at, const Profile& profile) {
  if (at.hosts == 1 || distance < at.ranks_per_host) return profile.host;
  return {profile.net.latency, profile.net.bandwidth / at.ranks_per_host};
}

double transfer(const Link& link, double bytes) { return link.latency + bytes / link.bandwidth; }

// What pairs of ranks cost where their number is no power of two: the tensor to the neighbour, an addition, and back.
double pairing(const Placement& at, uint64_t bytes, Dtype dtype, const Profile& profile) {
  if ((at.ranks & (at.ranks - 1)) == 0) return 0;
  const Link link = at.ranks_per_host > 1 ? profile.host : link_at(1, at, profile);
  return 2 * transfer(link, static_cast<double>(bytes)) + adding(bytes, dtype, profile);
}

}  // namespace

// 2 (N-1) hops in a row; each link carries 2 (N-1)/N of the tensor, and the slowest one sets the pace. Between two hosts
// there is one flow each way, whatever p is.
double ring_cost(const Placement& at, uint64_t bytes, Dtype dtype, const Profile& profile) {
  if (at.ranks == 1) return profile.overhead;
  const double n = static_cast<double>(bytes), share = double(at.ranks - 1) / at.ranks;
  const int crossings = at.hosts == 1 ? 0 : at.hosts;
  const double round = (at.ranks - crossings) * profile.host.latency + crossings * profile.net.latency;  // once around
  double slowest = profile.net.bandwidth;
  if (crossings == 0) slowest = profile.host.bandwidth;
  if (crossings > 0 && crossings < at.ranks) slowest = std::min(slowest, profile.host.bandwidth);
  return profile.overhead + 2 * share * (round + n / slowest) + share * adding(bytes, dtype, profile);
}

// Each rank reads its chunk of N tensors and writes it to N: together they move 2 N n bytes. Three signals.
double shared_memory_cost(const Placement& at, uint64_t bytes, Dtype, const Profile& profile) {
  const double p = at.ranks_per_host;
  return profile.overhead + 3 * profile.shared.latency + 2 * p * static_cast<double>(bytes) / profile.shared.bandwidth;
}

// Within the host as above; between hosts p rings, each with 1/p of the tensor, share the link. The two overlap in four
// segments or more, so the shorter one shows with a quarter.
double two_level_cost(const Placement& at, uint64_t bytes, Dtype dtype, const Profile& profile) {
  const double inside = shared_memory_cost(at, bytes, dtype, profile) - profile.overhead;
  Placement ring{at.hosts, at.hosts, 1, false};
  const double between = ring_cost(ring, bytes, dtype, profile) - profile.overhead;
  return profile.overhead + std::max(inside, between) + std::min(inside, between) / 4;
}

double recursive_doubling_cost(const Placement& at, uint64_t bytes, Dtype dtype, const Profile& profile) {
  double seconds = profile.overhead + pairing(at, bytes, dtype, profile);
  for (int level = 0; level < log2_down(at.ranks); ++level)
    seconds += transfer(link_at(1 << level, at, profile), static_cast<double>(bytes)) + adding(bytes, dtype, profile);
  return seconds;
}

double halving_doubling_cost(const Placement& at, uint64_t bytes, Dtype dtype, const Profile& profile) {
  double seconds = profile.overhead + pairing(at, bytes, dtype, profile), part = static_cast<double>(bytes);
  uint64_t added = bytes;
  for (int level = 0; level < log2_down(at.ranks); ++level) {
    part /= 2, added /= 2;
    seconds += 2 * transfer(link_at(1 << level, at, profile), part) + adding(added, dtype, profile);
  }
  return seconds;
}

// Up and down: a segment's hops, then the tensor at the rate of the link, in and out at once. Both trees have an inner
// rank on each host, so where several share a link it carries the tensor twice.
double double_tree_cost(const Placement& at, uint64_t bytes, Dtype dtype, const Profile& profile) {
  if (at.ranks == 1) return profile.overhead;
  const double n = static_cast<double>(bytes),
               segment = std::max(n / 2 / kTreeSegments, std::min(n / 2, double(kTreeSegmentBytes)));
  const int between = at.hosts == 1 ? 0 : log2_up(at.hosts + 1), inside = log2_up(at.ranks + 1) - between;
  const double hops = std::max(inside, 0) * transfer(profile.host, segment) + between * transfer(profile.net, segment);
  const double shared = at.hosts > 1 && at.ranks_per_host > 1 ? 2 : 1;
  const double rate = at.hosts == 1 ? profile.host.bandwidth : profile.net.bandwidth / shared;
  return profile.overhead + 2 * (hops + n / rate) + adding(bytes, dtype, profile);
}

}  // namespace ringdp
