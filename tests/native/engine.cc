// Engines of several ranks in this process, over the local transport: each has a thread of its own.
#include "engine/engine.h"

#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "engine/local_ranks.h"

using namespace ringdp;

namespace {

constexpr double kLong = 60;  // seconds that nothing here takes, under an emulator neither

using Floats = std::vector<float>;

// Small integers, another one for each rank and index; the sums of a few are exact.
Floats coded(int rank, size_t count) {
  Floats x(count);
  for (size_t i = 0; i < count; ++i) x[i] = static_cast<float>((3 * i + 5 * static_cast<size_t>(rank)) % 13 + 1);
  return x;
}

Floats total(int ranks, size_t count) {
  Floats sum(count);
  for (int r = 0; r < ranks; ++r) {
    const Floats x = coded(r, count);
    for (size_t i = 0; i < count; ++i) sum[i] += x[i];
  }
  return sum;
}

class Ranks {
 public:
  Ranks(int size, uint64_t delay_seed) : engines_(local_engines(options(), size, delay_seed, {})) {}

  int size() const { return static_cast<int>(engines_.size()); }
  Engine& operator[](int rank) { return *engines_[rank]; }

  // `act(rank)` on a thread of its own for each rank, as their callers are. The first error is thrown when all are
  // done.
  template <class Act>
  void each(const Act& act) {
    std::vector<std::string> errors(engines_.size());
    std::vector<std::thread> threads;
    for (int r = 0; r < size(); ++r)
      threads.emplace_back([&, r] {
        try {
          act(r);
        } catch (const std::exception& error) {
          errors[r] = error.what();
        }
      });
    for (std::thread& thread : threads) thread.join();
    for (const std::string& error : errors)
      if (!error.empty()) fail(ErrorKind::internal, error);
  }

  void leave() {
    each([&](int r) { CHECK(engines_[r]->shutdown(kLong), "rank ", r, ": others did not leave"); });
  }

 private:
  static Options options() {
    Options o;
    o.timeout = kLong;
    o.segment_bytes = 64;  // many segments in a small tensor
    o.depth = 2;
    return o;
  }

  std::vector<std::unique_ptr<Engine>> engines_;
};

std::shared_ptr<Handle> allreduce(Engine& engine, const std::string& name, const Floats& input, Floats& output) {
  Submission s;
  s.name = name;
  s.input = input.data();
  s.output = output.data();
  s.shape = {input.size()};
  return engine.submit(std::move(s));
}

void wait_for(const std::shared_ptr<Handle>& handle) {
  const Deadline deadline = Deadline::in(Seconds(kLong));
  while (!handle->done()) {
    CHECK(!deadline.passed(), "an operation hangs");
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  handle->result();
}

// Several operations at a time, submitted in another order by each rank, into outputs that hold something else.
void allreduce_many(Ranks& ranks, int operations) {
  ranks.each([&](int r) {
    std::vector<Floats> inputs, outputs;
    std::vector<std::shared_ptr<Handle>> handles(operations);
    for (int i = 0; i < operations; ++i) inputs.push_back(coded(r, 37 * i)), outputs.push_back(Floats(37 * i, 77.f));
    for (int i = 0; i < operations; ++i) {
      const int which = (i + r) % operations;
      handles[which] = allreduce(ranks[r], "x" + std::to_string(which), inputs[which], outputs[which]);
    }
    for (int i = 0; i < operations; ++i) {
      wait_for(handles[i]);
      CHECK(outputs[i] == total(ranks.size(), 37 * i), "rank ", r, ", operation ", i);
      CHECK(inputs[i] == coded(r, 37 * i), "rank ", r, ": an input was written to");
    }
  });
}

}  // namespace

TEST(allreduce_by_name_is_exact_on_any_number_of_ranks) {
  for (const int size : {1, 2, 3, 4, 7})
    for (const uint64_t seed : {0, 1}) {
      Ranks ranks(size, seed);
      for (int round = 0; round < 3; ++round) allreduce_many(ranks, 8);
      ranks.leave();
    }
}

TEST(buckets_of_a_plan_and_votes_are_exact) {
  constexpr int kSize = 3, kSteps = 5, kBuckets = 6;
  Ranks ranks(kSize, 2);
  ranks.each([&](int r) {
    Submission plan;
    plan.kind = OpKind::open_plan;
    plan.name = "plan";
    plan.text = "weights float32";
    const auto opened = ranks[r].submit(std::move(plan));
    wait_for(opened);
    const int lane = opened->result().lane;
    for (int step = 0; step < kSteps; ++step) {
      std::vector<Floats> buckets;
      for (int i = 0; i < kBuckets; ++i) buckets.push_back(coded(r, 50 + i));
      std::vector<std::shared_ptr<Handle>> handles;
      for (int i = 0; i < kBuckets; ++i) {
        Submission s;
        s.lane = lane;
        s.bucket = static_cast<uint32_t>(i);
        s.plan_digest = 99;
        s.input = s.output = buckets[i].data();
        s.shape = {buckets[i].size()};
        handles.push_back(ranks[r].submit(std::move(s)));
      }
      const auto vote = ranks[r].vote(0, lane, {uint64_t(10 + r), uint64_t(10 - r)});
      for (int i = 0; i < kBuckets; ++i) {
        wait_for(handles[i]);
        CHECK(buckets[i] == total(kSize, 50 + i), "rank ", r, ", step ", step, ", bucket ", i);
      }
      wait_for(vote);
      CHECK((vote->result().words == std::vector<uint64_t>{10, 8}), "the minimum of each field");
    }
  });
  ranks.leave();
}

TEST(ranks_that_disagree_get_an_error_and_go_on) {
  Ranks ranks(3, 1);
  ranks.each([&](int r) {
    const Floats input = coded(r, r == 1 ? 5 : 4);
    Floats output(input.size(), 77.f);
    const auto handle = allreduce(ranks[r], "grad", input, output);
    const std::string error = ringdp::tests::error_of([&] { wait_for(handle); });
    CHECK(error.find("float32[5]") != std::string::npos && error.find("float32[4]") != std::string::npos, error);
    CHECK(output == Floats(input.size(), 77.f), "the output was touched");
  });
  allreduce_many(ranks, 3);
  ranks.leave();
}

TEST(who_waits_for_a_rank_that_left_is_told) {
  Ranks ranks(3, 1);
  const Floats input = coded(0, 4);
  Floats output(4);
  const auto waiting = allreduce(ranks[0], "grad", input, output);
  ranks.each([&](int r) {
    if (r == 0) {
      const std::string error = ringdp::tests::error_of([&] { wait_for(waiting); });
      CHECK(error.find("has shut ringdp down") != std::string::npos, error);
    }
    CHECK(ranks[r].shutdown(kLong), "rank ", r);
  });
}

// Named and unnamed, by several threads, more than there are slots for unnamed ones: each caller drives, or another for it.
TEST(callers_take_their_own_operations) {
  constexpr int kThreads = 4, kCalls = 300;
  Ranks ranks(1, 0);
  Engine& engine = ranks[0];
  std::vector<std::string> errors(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([&, t] {
      try {
        for (int i = 0; i < kCalls; ++i) {
          const Floats input = coded(t + i, 5);
          Floats output(5, 77.f);
          Submission s;
          if (i % 3) s.name = "thread " + std::to_string(t);
          s.input = input.data();
          s.output = output.data();
          s.shape = {5};
          const Engine::Caller caller(engine);
          const auto handle = engine.call(std::move(s));
          CHECK(engine.wait(*handle, Deadline::in(Seconds(kLong)), nullptr), "thread ", t, ", call ", i);
          handle->result();
          CHECK(output == input, "thread ", t, ", call ", i);
        }
      } catch (const std::exception& error) {
        errors[t] = error.what();
      }
    });
  for (std::thread& thread : threads) thread.join();
  for (const std::string& error : errors) CHECK(error.empty(), error);
  ranks.leave();
}

TEST(a_call_is_refused_as_a_submission_is) {
  for (const int size : {1, 2}) {
    Ranks ranks(size, 0);
    const Floats input = coded(0, 3);
    Floats output(3);
    const auto call = [&](const char* name) {
      Submission s;
      s.name = name;
      s.input = input.data();
      s.output = output.data();
      s.shape = {3};
      return ranks[0].call(std::move(s));
    };
    std::string error = ringdp::tests::error_of([&] { call("unnamed.3"); });
    CHECK(error.find("names that begin with 'unnamed.' are those of unnamed calls") != std::string::npos, error);
    for (int time = 0; time < 3; ++time) {  // the name is free again as soon as somebody hears of the end
      const auto first = call("twice");
      if (size > 1) {
        error = ringdp::tests::error_of([&] { call("twice"); });
        CHECK(error.find("'twice': an operation of this name is still in flight") != std::string::npos, error);
        Floats other(3);
        wait_for(allreduce(ranks[1], "twice", input, other));
      }
      wait_for(first);
    }
    ranks.leave();
    error = ringdp::tests::error_of([&] { call("late"); });
    CHECK(error.find("ringdp was shut down") != std::string::npos, error);
  }
}
