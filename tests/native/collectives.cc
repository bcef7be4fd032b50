// The schedules of all collectives, simulated: collectives/simulate.h says what that proves.
#include <string>
#include <vector>

#include "check.h"
#include "collectives/sweep.h"

using namespace ringdp;
using namespace ringdp::simulate;
using ringdp::tests::error_of;

namespace {

constexpr int kMostRanks = 7;
constexpr uint64_t kMostElements = 17;

// The numbers of cases that `sweep` runs are its own; that it runs many, and in fact checks, the tests below see.
void sweep_all_ranks(Collective collective, uint64_t at_least, Algorithm algorithm = Algorithm::ring) {
  uint64_t cases = 0;
  Case like;
  like.collective = collective, like.algorithm = algorithm;
  for (like.ranks = 1; like.ranks <= kMostRanks; ++like.ranks)
    cases += sweep(like, kMostElements, {1, 3, 64}, {1, 2}, static_cast<uint64_t>(like.ranks));
  CHECK(cases >= at_least, cases, " cases");
}

// The contributions of a chunk in the order of the ring: from the owner's successor to the owner.
std::string ring_sum(int ranks, int chunk) {
  std::string text = std::to_string((chunk + 1) % ranks);
  for (int hop = 2; hop <= ranks; ++hop) text = "(" + std::to_string((chunk + hop) % ranks) + "+" + text + ")";
  return text;
}

Case ring_case(int ranks, uint64_t count, Pipeline pipeline) {
  Case c;
  c.ranks = ranks;
  c.counts = {count};
  c.pipeline = pipeline;
  return c;
}

}  // namespace

TEST(allreduce_is_right_in_a_random_order) {
  for (const AlgorithmRow& row : algorithm_table())
    if (row.schedule) sweep_all_ranks(Collective::allreduce, 3000, row.algorithm);
}
TEST(allreduce_in_shared_memory_is_right_in_a_random_order) {
  for (const Sharing sharing : {Sharing::direct, Sharing::staged}) {
    uint64_t cases = 0;
    Case like;
    like.sharing = sharing;
    for (like.ranks = 2; like.ranks <= kMostRanks; ++like.ranks)  // one rank shares with nobody
      cases += sweep(like, kMostElements, {1, 3, 64}, {1}, static_cast<uint64_t>(like.ranks));
    CHECK(cases >= 500, cases, " cases");
  }
}
TEST(reduce_scatter_is_right_in_a_random_order) { sweep_all_ranks(Collective::reduce_scatter, 3000); }
TEST(allgather_is_right_in_a_random_order) { sweep_all_ranks(Collective::allgather, 500); }
TEST(broadcast_is_right_in_a_random_order) { sweep_all_ranks(Collective::broadcast, 1000); }
TEST(alltoall_is_right_in_a_random_order) { sweep_all_ranks(Collective::alltoall, 500); }

TEST(the_ring_adds_in_the_order_that_is_drawn_above_it) {
  CHECK(ring_sum(4, 0) == "(0+(3+(2+1)))");
  const uint64_t chunks[] = {8, 8, 7, 7};
  for (const Pipeline pipeline : {Pipeline{1, 1}, Pipeline{3, 2}, Pipeline{64, 8}})
    for (uint64_t seed = 0; seed < 4; ++seed) {
      const Case c = ring_case(4, 30, pipeline);
      Simulation simulation(schedules_of(c), problem_of(c));
      for (int rank = 0; rank < 4; ++rank) {
        std::vector<std::string> wanted;
        for (int chunk = 0; chunk < 4; ++chunk) wanted.insert(wanted.end(), chunks[chunk], ring_sum(4, chunk));
        CHECK(simulation.sums(rank, seed) == wanted, "rank ", rank, ", seed ", seed);
      }
    }
}

// A schedule without one of its dependencies is wrong in some order of events.
TEST(a_schedule_without_a_dependency_is_caught) {
  const Case c = ring_case(3, 20, {2, 2});
  std::vector<Schedule> schedules = schedules_of(c);
  size_t i = 0;
  while (schedules[1].moves[i].kind != Kind::reduce) ++i;
  check(c, schedules, 0, 100);
  for (int32_t& after : schedules[1].moves[i].after) after = -1;
  CHECK(error_of([&] { check(c, schedules, 0, 100); }).find("simulation: ") != std::string::npos);
}
