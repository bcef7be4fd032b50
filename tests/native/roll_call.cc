// Roll calls without engines: each rank has a recorder, a watch, and its own turns, which the test takes.
#include "guard/roll_call.h"

#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "check.h"
#include "transport/local.h"

using namespace ringdp;

namespace {

constexpr double kTimeout = 0.4;
constexpr double kLong = 30;  // seconds that nothing here takes

// Ranks on hosts; what each waits for is a bucket of plan 1, or else a named operation.
class Ranks {
 public:
  explicit Ranks(const std::vector<int>& hosts) : hub_(make_local_hub(int(hosts.size()), 0)) {
    options_.timeout = options_.report_after = kTimeout;
    std::vector<std::string> names;
    for (const int host : hosts) names.push_back("n" + std::to_string(host));
    for (size_t r = 0; r < hosts.size(); ++r) {
      const Flight::Owner owner{int(r), int(hosts.size()), 0, 1, "test"};
      flights_.push_back(std::make_shared<Flight>("", owner));
      watches_.push_back(std::make_unique<Watch>(flights_[r]));
      watches_[r]->set_places(hosts, names);
      controls_.push_back(make_local_transport(hub_, int(r)));
      calls_.push_back(std::make_unique<RollCall>(options_, *controls_[r], *watches_[r]));
    }
    for (size_t r = 0; r < hosts.size(); ++r)
      for (size_t other = 0; other < hosts.size(); ++other)
        if (other != r && hosts[other] == hosts[r]) watches_[r]->attach(int(other), flights_[other]);
  }

  // The rank comes to the bucket, and waits for it.
  void come(int rank) {
    Question question;
    question.sequence = 7;
    question.lane = 1;
    come_to("bucket 7 of plan 1", question, rank);
  }

  void come_to_named(int rank) {
    Question question;
    question.key = 4711;
    come_to("'norm'", question, rank);
  }

  void come_to(const std::string& what, const Question& question, int rank) {
    flights_[rank]->begin({question.kind, question.process_set, question.lane, question.key, question.sequence, 64,
                           what.data(), what.size(), Clock::now()},
                          Stage::reduce);
    Wait wait;
    wait.question = question;
    wait.what = what;
    wait.since = Clock::now();
    for (size_t r = 0; r < calls_.size(); ++r) wait.ranks.push_back(int(r));
    waits_[rank] = wait;
  }

  // Turns of these ranks, until the wait of the first is over; what it is told.
  std::string until_over(const std::vector<int>& turns) {
    const Deadline deadline = Deadline::in(Seconds(kLong));
    const int first = turns[0];
    while (!calls_[first]->is_over(waits_.at(first).since)) {
      CHECK(!deadline.passed(), "the wait does not end");
      for (const int rank : turns)
        calls_[rank]->look([this, rank]() -> std::optional<Wait> {
          const auto wait = waits_.find(rank);
          return wait == waits_.end() ? std::nullopt : std::optional<Wait>(wait->second);
        });
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return calls_[first]->late("it is late").what();
  }

  Transport& control(int rank) { return *controls_[rank]; }
  Flight& flight(int rank) { return *flights_[rank]; }

 private:
  Options options_;
  std::shared_ptr<LocalHub> hub_;
  std::vector<std::shared_ptr<Flight>> flights_;
  std::vector<std::unique_ptr<Watch>> watches_;
  std::vector<std::unique_ptr<Transport>> controls_;
  std::vector<std::unique_ptr<RollCall>> calls_;
  std::map<int, Wait> waits_;
};

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST(of_another_host_one_rank_answers_for_all) {
  Ranks ranks({0, 1, 1});
  ranks.come(0);
  ranks.come(1);
  const std::string error = ranks.until_over({0, 1});  // rank 2 never takes a turn
  CHECK(has(error, "rank 0: it is late: rank 2 (host "), error);
  CHECK(has(error, "and has not come"), error);
  CHECK(!has(error, "rank 1 ("), error);
  CHECK(text_of(ranks.flight(0).head().verdict) == error.substr(error.find("rank 2")), "the recorder says the same");
}

TEST(where_the_first_asked_does_not_answer_the_next_is_asked) {
  Ranks ranks({0, 1, 1, 1});
  for (const int rank : {0, 1, 3}) ranks.come(rank);
  const std::string error = ranks.until_over({0, 2});  // neither rank 1, which has come, nor rank 3 take a turn
  CHECK(has(error, "rank 2 (host "), error);
  CHECK(has(error, "and has not come"), error);
  CHECK(!has(error, "not answer"), error);
}

TEST(a_host_of_which_nobody_answers_is_named_with_all_its_ranks_and_who_asked) {
  Ranks ranks({0, 0, 1, 1, 2});
  for (int rank = 0; rank < 5; ++rank) ranks.come(rank);
  const std::string error = ranks.until_over({0, 4});
  CHECK(has(error, "ranks 2, 3 (host n1) do not answer: the host or the link to it is down"), error);
  CHECK(has(error, "asked by host "), error);
  CHECK(!has(error, "rank 4") && !has(error, "rank 1 "), error);
}

TEST(who_has_left_is_to_blame_but_not_while_another_is_gone_or_has_not_come) {
  for (const std::string other : {"has come", "has not come", "is gone"}) {
    Ranks ranks({0, 0, 0});
    ranks.come(0);
    ranks.flight(1).head().standing = Standing::ended;
    if (other == "has come") ranks.come(2);
    if (other == "is gone")  // its engine is in a turn that does not end
      ranks.flight(2).head().turn_since = nanoseconds(Clock::now() - std::chrono::seconds(60));
    const std::string error = ranks.until_over({0});
    const bool is_to_blame = other == "has come";
    CHECK(has(error, "rank 1 (host ") == is_to_blame, error);
    CHECK(has(error, "has left the job") == is_to_blame, error);
    CHECK(has(error, "rank 2 (host ") == !is_to_blame, error);
  }
}

TEST(of_two_sides_that_wait_for_each_other_the_smaller_is_to_blame_also_to_itself) {
  std::vector<int> hosts(21, 1);  // more than an answer has room for
  hosts[0] = 0;
  Ranks ranks(hosts);
  ranks.come(0);
  for (int rank = 1; rank < 21; ++rank) ranks.come_to_named(rank);
  for (const std::vector<int>& turns : {std::vector<int>{0, 1}, {1, 0}}) {
    const std::string error = ranks.until_over(turns);
    CHECK(has(error, "rank 0 (host "), error);
    CHECK(has(error, "waits for something else; in bucket 7 of plan 1"), error);
    CHECK(!has(error, "rank 1 ("), error);
    CHECK(has(error, "rank 1 is in allreduce ''norm'' (REDUCE) for") == (turns[0] == 0), error);
  }
}

TEST(when_all_have_come_it_is_what_they_exchange) {
  Ranks ranks({0, 1});
  ranks.come(0);
  ranks.come(1);
  const std::string error = ranks.until_over({0, 1});
  CHECK(has(error, "all ranks have come to bucket 7 of plan 1, but what they exchange does not get through"), error);
}

TEST(what_is_no_question_and_no_answer_is_passed_over) {
  Ranks ranks({0, 1});
  ranks.come(0);
  std::vector<Request> requests;
  const std::vector<std::byte> noise(40, std::byte{0x5a});
  for (const int tag : {Dispatches::question, Dispatches::answer})
    for (const size_t bytes : {size_t{0}, size_t{3}, noise.size()})
      requests.push_back(ranks.control(1).send(0, tag, noise.data(), bytes));
  const std::string error = ranks.until_over({0, 1});
  CHECK(has(error, "rank 1 (host "), error);
  CHECK(has(error, "and has not come"), error);
}

TEST(a_dispatch_longer_than_any_is_refused_before_memory_is_taken) {
  Ranks ranks({0, 1});
  ranks.come(0);
  const std::vector<std::byte> noise(1 << 20);
  const Request request = ranks.control(1).send(0, Dispatches::answer, noise.data(), noise.size());
  CHECK(request.pending(), "it is on its way");
  const std::string error = ringdp::tests::error_of([&] { ranks.until_over({0}); });
  CHECK(has(error, "rank 1 sent a dispatch of 1048576 bytes"), error);
}
