#include "collectives/choice.h"

namespace ringdp {

namespace {

// Where the ring costs hardly more than the cheapest, it is taken: its traffic is the same on every link, which no
// constant of a profile shows (a network with fewer links between switches, other traffic, ranks in another order).
constexpr double kPreferRing = 1.1;

}  // namespace

Algorithm Chooser::choose(uint64_t bytes, Dtype dtype) const {
  return ringdp::choose(placement, bytes, dtype, profile, forced);
}

Algorithm Chooser::choose_in_one_level(uint64_t bytes, Dtype dtype) const {
  Placement flat = placement;
  flat.two_levels = false;
  return ringdp::choose(flat, bytes, dtype, profile, forced);
}

Chooser make_chooser(const Placement& placement, const std::string& algorithm, const std::string& profile) {
  Chooser chooser{placement, profile_of(profile), std::nullopt};
  if (algorithm != "auto") chooser.forced = algorithm_of(algorithm);
  return chooser;
}

bool possible(Algorithm algorithm, const Placement& at) {
  switch (algorithm) {
    case Algorithm::shared_memory:
      return at.shared_memory && at.ranks > 1;
    case Algorithm::two_level:
      return at.two_levels;
    default:
      return true;
  }
}

std::vector<std::pair<std::string, double>> costs(const Placement& at, uint64_t bytes, Dtype dtype,
                                                  const Profile& profile) {
  std::vector<std::pair<std::string, double>> found;
  for (const AlgorithmRow& row : algorithm_table())
    if (possible(row.algorithm, at)) found.emplace_back(row.name, row.cost(at, bytes, dtype, profile));
  return found;
}

Algorithm choose(const Placement& at, uint64_t bytes, Dtype dtype, const Profile& profile,
                 std::optional<Algorithm> forced) {
  if (forced) return possible(*forced, at) ? *forced : Algorithm::ring;
  if (at.ranks == 1) return Algorithm::ring;
  if (possible(Algorithm::shared_memory, at)) return Algorithm::shared_memory;
  const double ring = ring_cost(at, bytes, dtype, profile);
  double least = ring;
  Algorithm best = Algorithm::ring;
  for (const AlgorithmRow& row : algorithm_table()) {
    if (!possible(row.algorithm, at)) continue;
    const double cost = row.cost(at, bytes, dtype, profile);
    if (cost < least) least = cost, best = row.algorithm;
  }
  return ring <= kPreferRing * least ? Algorithm::ring : best;
}

}  // namespace ringdp
