// Runs whose segments are checked: a bit that is flipped in any one message is found, by the rank that it comes to; and
// without checksums the result is wrong, so the flip was one that matters.
#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "collectives/algorithm.h"
#include "collectives/casts.h"
#include "collectives/halves.h"
#include "collectives/run.h"
#include "transport/local.h"

using namespace ringdp;

namespace {

constexpr int kMany = 1000000;  // looks that nothing here takes
using Ints = std::vector<int32_t>;

// Flips a bit of the n-th message, headers not counted.
struct Flip {
  int64_t message = -1;
  uint64_t bit = 0;
  int from = -1, to = -1;  // where it was: -1: there were not so many

  OnTheWay function() {
    return [this, seen = int64_t{0}](int sender, int receiver, std::byte* data, size_t bytes) mutable {
      uint16_t magic = 0;
      if (bytes == sizeof(Header)) std::memcpy(&magic, data, sizeof magic);
      if (bytes == 0 || magic == Header::kMagic || seen++ != message) return;
      const uint64_t at = bit % (8 * bytes);
      data[at / 8] ^= std::byte{1} << at % 8;
      from = sender, to = receiver;
    };
  }
};

struct Plan {
  int size = 2;
  Algorithm algorithm = Algorithm::ring;
  Half half = Half::both;
  uint64_t count = 101;
  Pipeline cut{7, 2};
  bool checks = true;
};

// Another number for each rank and index.
int32_t element(int rank, uint64_t i) { return static_cast<int32_t>(1000 * (rank + 1) + 7 * i); }

struct Rank {
  Rank(const Plan& plan, int rank, std::unique_ptr<Transport> way) : transport(std::move(way)), data(plan.count) {
    for (uint64_t i = 0; i < plan.count; ++i) data[i] = element(rank, i);
    Header header;
    header.count = plan.count;
    header.half = static_cast<uint8_t>(plan.half);
    if (plan.checks) header.flags |= Header::kChecksum;
    const AlgorithmRow& row = row_of(plan.algorithm);
    Schedule schedule = plan.half == Half::both
                            ? row.schedule(plan.size, rank, plan.count, plan.cut, {}, true)
                            : half_of(plan.algorithm, plan.half, plan.size, rank, plan.count, plan.cut, {});
    std::vector<int> partners;
    if (row.partners) partners = row.partners(plan.size, rank);
    run = std::make_unique<Run>(std::move(schedule), Memory{data.data(), data.data()}, Elements{Dtype::int32}, header,
                                1, plan.cut.segment * sizeof(int32_t), Neighbours::ring, partners, *transport);
  }

  std::unique_ptr<Transport> transport;
  Ints data;
  std::unique_ptr<Run> run;
};

using Ranks = std::vector<std::unique_ptr<Rank>>;

template <class All>
void finish(const All& all) {
  for (int looks = 0;; ++looks) {
    bool done = true;
    for (const auto& rank : all) rank->run->progress(), done &= rank->run->done();
    if (done) break;
    CHECK(looks < kMany, "a run hangs");
  }
  for (const auto& rank : all) CHECK(rank->run->error().empty(), rank->run->error());
}

Ranks run(const Plan& plan, Flip& flip, uint64_t seed) {
  const auto hub = make_local_hub(plan.size, seed, flip.function());
  Ranks all;
  for (int r = 0; r < plan.size; ++r) all.push_back(std::make_unique<Rank>(plan, r, make_local_transport(hub, r)));
  finish(all);
  return all;
}

std::vector<Ints> results(const Ranks& all) {
  std::vector<Ints> data;
  for (const auto& rank : all) data.push_back(rank->data);
  return data;
}

// Every message in turn. Returns how many there were.
int64_t flip_each(Plan plan, uint64_t seed, int64_t step = 1) {
  Flip none;
  plan.checks = true;
  const std::vector<Ints> right = results(run(plan, none, seed));
  int64_t messages[2] = {0, 0};
  for (const bool checks : {false, true}) {
    plan.checks = checks;
    for (int64_t n = 0;; n += step) {
      Flip flip{n, static_cast<uint64_t>(5 + 11 * n)};
      const Ranks all = run(plan, flip, seed);
      int found = 0;
      for (int r = 0; r < plan.size; ++r) {
        const Damage& damage = all[r]->run->damage();
        if (!damage) continue;
        ++found;
        CHECK(damage.from == flip.from && damage.to == flip.to && r == flip.to, damage.text(*all[r]->transport));
        CHECK(damage.segment < damage.segments, damage.text(*all[r]->transport));
        CHECK(damage.element == Damage::kNowhere || damage.element + damage.count <= plan.count);
      }
      if (flip.to < 0) {
        CHECK(found == 0 && results(all) == right);
        break;
      }
      CHECK(found == (checks ? 1 : 0), found, " ranks have found what was flipped in message ", n);
      if (!checks) CHECK(results(all) != right, "message ", n, " matters to nobody");
      messages[checks] += step;
    }
  }
  if (step == 1) CHECK(messages[1] > messages[0], "checksums are messages, too");
  return messages[1];
}

}  // namespace

TEST(a_flipped_bit_is_found_in_any_message_of_any_algorithm) {
  for (const AlgorithmRow& row : algorithm_table()) {
    if (!row.schedule) continue;
    for (const int size : {2, 3, 4})
      for (const uint64_t seed : {0, 1}) {
        Plan plan;
        plan.size = size, plan.algorithm = row.algorithm;
        CHECK(flip_each(plan, seed) >= 20, name_of(row.algorithm));
      }
  }
}

TEST(a_flipped_bit_is_found_in_both_halves) {
  for (const Algorithm algorithm : {Algorithm::ring, Algorithm::halving_doubling})
    for (const Half half : {Half::reduce_scatter, Half::all_gather})
      for (const int size : {2, 3, 4}) {
        Plan plan;
        plan.size = size, plan.algorithm = algorithm, plan.half = half;
        if (has_halves(algorithm, size)) flip_each(plan, 3);
      }
}

// More segments than a message of checksums has room for: the flip may be far behind the first of them.
TEST(a_flipped_bit_is_found_among_many_segments) {
  Plan plan;
  plan.count = 2 * Checksums::kMost + 500;
  plan.cut = {1, 3};
  CHECK(flip_each(plan, 0, 97) > static_cast<int64_t>(2 * plan.count));
}

TEST(what_was_damaged_is_said_in_words) {
  Plan plan;
  Flip flip{0, 3};
  const Ranks all = run(plan, flip, 0);
  all[flip.to]->transport->call_ranks({10, 20});
  const std::string text = all[flip.to]->run->damage().text(*all[flip.to]->transport);
  const auto says = [&](const std::string& part) { return text.find(part) != std::string::npos; };
  const int names[] = {10, 20};
  CHECK(says("from rank " + std::to_string(names[flip.from]) + " to rank " + std::to_string(names[flip.to])), text);
  CHECK(says("segment 0 of the ") && says("elements [") && says(") of the output"), text);
}

// Of several that were damaged all ranks tell the same one, in whatever order they hear of them.
TEST(what_is_told_of_several_does_not_depend_on_who_hears_first) {
  const auto damage = [](int from, int to, uint64_t segment) {
    Damage d;
    d.from = from, d.to = to, d.segment = segment;
    return d;
  };
  std::vector<Damage> all{{}, damage(2, 0, 9), damage(1, 0, 10), damage(0, 1, 0)};
  do {
    const Damage& told = *std::min_element(all.begin(), all.end());
    CHECK(told.from == 1 && told.to == 0 && told.segment == 10);
  } while (std::next_permutation(all.begin(), all.end()));
  CHECK(!std::min(Damage(), Damage()));
}

namespace {

// All-reduces of float32 that travel as bfloat16.
struct CastRank {
  CastRank(int rank, int size, bool checks, std::unique_ptr<Transport> way)
      : transport(std::move(way)), wide(kCount), wire(kCount) {
    for (uint64_t i = 0; i < kCount; ++i) wide[i] = static_cast<float>(2 * (i % 20) + rank);
    Header header;
    header.count = kCount;
    if (checks) header.flags |= Header::kChecksum;
    Schedule schedule = ring_allreduce(size, rank, kCount, {40, 2}, {}, true);
    auto casts = std::make_unique<Casts>(schedule, Wide{Dtype::float32, wide.data(), wide.data()}, wire.data(),
                                         Dtype::bfloat16, kCount, 24);
    run = std::make_unique<Run>(std::move(schedule), Memory{wire.data(), wire.data()}, Elements{Dtype::bfloat16},
                                header, 1, size_t{80}, Neighbours::ring, std::vector<int>(), *transport, Shared(),
                                std::move(casts));
  }
  static constexpr uint64_t kCount = 501;
  std::unique_ptr<Transport> transport;
  std::vector<float> wide;
  std::vector<uint16_t> wire;
  std::unique_ptr<Run> run;
};

}  // namespace

TEST(a_flipped_bit_is_found_in_what_is_cast_under_way) {
  for (const int size : {2, 3, 4})
    for (const bool checks : {false, true})
      for (int64_t n = 0;; ++n) {
        Flip flip{n, 14};  // of the exponent
        const auto hub = make_local_hub(size, 1, flip.function());
        std::vector<std::unique_ptr<CastRank>> all;
        for (int r = 0; r < size; ++r)
          all.push_back(std::make_unique<CastRank>(r, size, checks, make_local_transport(hub, r)));
        finish(all);
        int found = 0, wrong = 0;
        for (const auto& rank : all) {
          found += static_cast<bool>(rank->run->damage());
          for (uint64_t i = 0; i < CastRank::kCount; ++i)
            wrong += rank->wide[i] != static_cast<float>(2 * (i % 20) * size + size * (size - 1) / 2);
        }
        if (flip.to < 0) {
          CHECK(n > 20 && found == 0);
          break;
        }
        CHECK(found == (checks ? 1 : 0), "message ", n);
        if (!checks) CHECK(wrong > 0, "message ", n);
      }
}
