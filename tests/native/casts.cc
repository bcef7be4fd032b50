// All-reduces that are cast to bfloat16 under way, at the executor itself: whole tensors, and those that end half-way.
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "collectives/casts.h"
#include "collectives/run.h"
#include "transport/local.h"

using namespace ringdp;

namespace {

constexpr uint64_t kCount = 1001, kLarge = 1 << 20, kPiece = 24;  // kLarge: more than is cast at a time
constexpr float kUntouched = 77;
constexpr int kMany = 1000000;  // looks that nothing here takes

// Not a bfloat16, which has 8 bits: rounded to nearest even it is rounded(i).
float wide_at(uint64_t i, int rank) { return static_cast<float>(256 + 2 * ((i + rank) % 100)) + 0.25f; }
float rounded(uint64_t i, int rank) { return wide_at(i, rank) - 0.25f; }

struct Rank {
  Rank(int rank, int size, std::unique_ptr<Transport> way, Header header, bool in_place, uint64_t count)
      : transport(std::move(way)), input(count), separate(count, kUntouched), wire(count, 0x7fc1) {
    for (uint64_t i = 0; i < count; ++i) input[i] = wide_at(i, rank);
    header.count = count;
    const Pipeline cut{40, 2};
    Schedule schedule = ring_allreduce(size, rank, count, cut, {}, true);
    auto casts = std::make_unique<Casts>(schedule, Wide{Dtype::float32, input.data(), output(in_place)}, wire.data(),
                                         Dtype::bfloat16, count, kPiece);
    run = std::make_unique<Run>(std::move(schedule), Memory{wire.data(), wire.data()}, Elements{Dtype::bfloat16},
                                header, 1, size_t{80}, Neighbours::ring, std::vector<int>(), *transport, Shared(),
                                std::move(casts));
  }
  float* output(bool in_place) { return in_place ? input.data() : separate.data(); }

  std::unique_ptr<Transport> transport;
  std::vector<float> input, separate;
  std::vector<uint16_t> wire;
  std::unique_ptr<Run> run;
};

std::vector<std::unique_ptr<Rank>> ranks(int size, uint64_t seed, bool in_place = false, Header last = Header(),
                                         uint64_t count = kCount) {
  const auto hub = make_local_hub(size, seed);
  std::vector<std::unique_ptr<Rank>> made;
  for (int r = 0; r < size; ++r)
    made.push_back(std::make_unique<Rank>(r, size, make_local_transport(hub, r), r == size - 1 ? last : Header(),
                                          in_place, count));
  return made;
}

void finish(const std::vector<std::unique_ptr<Rank>>& all) {
  for (int looks = 0;; ++looks) {
    bool done = true;
    for (const auto& rank : all) rank->run->progress(), done &= rank->run->done();
    if (done) return;
    CHECK(looks < kMany, "a run hangs");
  }
}

// Exact: bfloat16 has 8 bits, and the sums of two are below 1024 and multiples of 4 if the numbers are of 2.
float sum_of_two(uint64_t i) {
  const float sum = rounded(i, 0) + rounded(i, 1);
  const float below = 4 * static_cast<float>(static_cast<int>(sum / 4));
  if (sum == below) return sum;
  return static_cast<int>(below / 4) % 2 == 0 ? below : below + 4;  // the middle of two: the even one
}

}  // namespace

TEST(one_rank_alone_rounds_its_tensor) {
  for (const bool in_place : {false, true}) {
    const auto all = ranks(1, 0, in_place, Header(), kLarge);
    finish(all);
    CHECK(all[0]->run->error().empty());
    for (uint64_t i = 0; i < kLarge; ++i) CHECK(all[0]->output(in_place)[i] == rounded(i, 0), i);
  }
}

TEST(two_ranks_get_the_sum_of_rounded_tensors) {
  for (const bool in_place : {false, true})
    for (uint64_t seed = 0; seed < 5; ++seed) {
      const auto all = ranks(2, seed, in_place);
      finish(all);
      for (const auto& rank : all) {
        CHECK(rank->run->error().empty(), rank->run->error());
        for (uint64_t i = 0; i < kCount; ++i) CHECK(rank->output(in_place)[i] == sum_of_two(i), i);
        for (uint64_t i = 0; i < kCount && !in_place; ++i)
          CHECK(rank->input[i] == wide_at(i, rank == all[1] ? 1 : 0), "the input was written");
      }
    }
}

TEST(a_wrong_header_leaves_outputs_as_they_were) {
  Header wrong;
  wrong.sequence = 5;
  for (uint64_t seed = 0; seed < 5; ++seed) {
    const auto all = ranks(3, seed, false, wrong);
    finish(all);
    for (const auto& rank : all) {
      CHECK(!rank->run->error().empty());
      for (const float x : rank->separate) CHECK(x == kUntouched);
    }
  }
}

// A piece of the output is as it was or the sum, never anything between. (Where the other rank had ended before, this one
// waits for it until a deadline, which a run does not know of.)
TEST(a_rank_that_gives_up_leaves_no_output_half_done) {
  int with_both = 0;
  for (int looks = 0; looks < 60; ++looks) {
    const auto all = ranks(2, 3);
    for (int i = 0; i < looks; ++i)
      for (const auto& rank : all) rank->run->progress();
    all[1]->run->poison("no more");
    for (int i = 0; i < 10000; ++i)
      for (const auto& rank : all) rank->run->progress();
    for (const auto& rank : all) {
      uint64_t summed = 0;
      for (uint64_t i = 0; i < kCount; ++i) {
        const float x = rank->separate[i];
        CHECK(x == kUntouched || x == sum_of_two(i), looks, ": ", x, " at ", i);
        summed += x != kUntouched;
      }
      CHECK(looks > 0 || summed == 0, "before any data left");
      with_both += summed > 0 && summed < kCount;
    }
  }
  CHECK(with_both > 0, "no run ended half-way");
}
