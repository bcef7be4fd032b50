// A rank that looks late at what is done already. The counts of an operation that has ended are handed to the next one, and
// carry its mark if that one fails: the late rank must not take it for the mark of the operation that it still looks at.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "collectives/levels.h"
#include "collectives/run.h"
#include "collectives/schedule.h"
#include "transport/local.h"

using namespace ringdp;

namespace {

constexpr int kMany = 100000;  // looks that nothing here takes
constexpr uint64_t kCount = 101;
constexpr Pipeline kCut{7, 2};
constexpr uint64_t kMark = uint64_t{1} << 63;  // of a rank that has given up
const std::vector<int> kHostOf{0, 0, 1, 1};

enum class Way { direct, staged, two_level_direct, two_level_staged };

struct Rank {
  std::vector<int32_t> output = std::vector<int32_t>(kCount), area;
  Counts::Line counts{};
  std::unique_ptr<Transport> transport;
  std::unique_ptr<Run> run;
};

struct Job {
  Job(Way way, uint64_t seed) : hub(make_local_hub(size_of(way), seed)), ranks(size_of(way)) {
    for (int r = 0; r < size_of(way); ++r) {
      for (uint64_t i = 0; i < kCount; ++i) ranks[r].output[i] = input(r, i);
      ranks[r].area.resize(schedule(way, r).area);
      ranks[r].transport = make_local_transport(hub, r);
    }
    for (int r = 0; r < size_of(way); ++r) {
      Rank& rank = ranks[r];
      Header header;
      header.count = kCount;
      rank.run = std::make_unique<Run>(schedule(way, r), Memory{rank.output.data(), rank.output.data()},
                                       Elements{Dtype::int32}, header, 1, kCut.segment * sizeof(int32_t),
                                       Neighbours::of_schedule, std::vector<int>(), *rank.transport, shared(r));
    }
  }

  static bool has_levels(Way way) { return way == Way::two_level_direct || way == Way::two_level_staged; }
  static int size_of(Way way) { return has_levels(way) ? static_cast<int>(kHostOf.size()) : 2; }
  static int32_t input(int rank, uint64_t i) { return 1000 * (rank + 1) + static_cast<int32_t>(i); }

  static Schedule schedule(Way way, int rank) {
    const Arithmetic none;
    switch (way) {
      case Way::direct:
        return shared_allreduce_direct(2, rank, kCount, kCut, none);
      case Way::staged:
        return shared_allreduce_staged(2, rank, kCount, kCut, none);
      case Way::two_level_direct:
        return two_level_direct(*levels_of(kHostOf, rank), kCount, kCut, none);
      case Way::two_level_staged:
        return two_level_staged(*levels_of(kHostOf, rank), kCount, kCut, none);
    }
    return {};
  }

  Shared shared(int rank) {
    Shared shared;
    const int first = rank / 2 * 2;  // of the host
    for (int r = first; r < first + 2; ++r)
      shared.mates.push_back({r,
                              reinterpret_cast<std::byte*>(ranks[r].output.data()),
                              reinterpret_cast<std::byte*>(ranks[r].area.data()),
                              &ranks[r].counts,
                              {}});
    shared.me = static_cast<size_t>(rank - first);
    shared.ring = [] {};
    return shared;
  }

  std::shared_ptr<LocalHub> hub;
  std::vector<Rank> ranks;
};

// `late` looks only when nobody else gets on. Whoever has ended begins another operation with its counts, and gives it up.
void look_late(Way way, int late, uint64_t seed) {
  Job job(way, seed);
  const auto is_open = [](const Rank& rank) { return !rank.run->done(); };
  const auto look = [](Rank& rank) {
    if (rank.run->done()) return false;
    const bool moved = rank.run->progress();
    if (rank.run->done()) rank.counts[0] |= kMark;
    return moved;
  };
  for (int looks = 0, still = 0; std::any_of(job.ranks.begin(), job.ranks.end(), is_open); ++looks) {
    CHECK(looks < kMany, "a run hangs");
    bool moved = false;
    for (int r = 0; r < Job::size_of(way); ++r)
      if (r != late || still > 100) moved |= look(job.ranks[r]);
    still = moved ? 0 : still + 1;
  }
  for (const Rank& rank : job.ranks) {
    CHECK(rank.run->error().empty(), rank.run->error());
    for (uint64_t i = 0; i < kCount; ++i) {
      int32_t sum = 0;
      for (int r = 0; r < Job::size_of(way); ++r) sum += Job::input(r, i);
      CHECK(rank.output[i] == sum, rank.output[i], " in place of ", sum);
    }
  }
}

}  // namespace

TEST(marks_of_a_later_operation_say_nothing_of_one_that_has_ended) {
  for (const Way way : {Way::direct, Way::staged, Way::two_level_direct, Way::two_level_staged})
    for (int late = 0; late < Job::size_of(way); ++late)
      for (const uint64_t seed : {1, 2, 3}) look_late(way, late, seed);
}
