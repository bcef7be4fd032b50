#include "play.h"

#include <chrono>
#include <cstdio>
#include <memory>
#include <thread>
#include <vector>

#include "check.h"
#include "engine/local_ranks.h"
#include "player.h"
#include "scenario.h"
#include "verdict.h"

namespace ringdp::tests {

namespace {

constexpr double kLong = 120;  // seconds that no scenario takes: what is not over then hangs

class Play {
 public:
  explicit Play(uint64_t seed) : scenario_(seed) {
    engines_ = local_engines(scenario_.options, scenario_.ranks, scenario_.delays, scenario_.hosts);
    for (const auto& engine : engines_) callers_.push_back(std::make_unique<Engine::Caller>(*engine));
    for (size_t set = 1; set < scenario_.sets.size(); ++set) add_set(static_cast<int>(set));
    for (int r = 0; r < scenario_.ranks; ++r)
      players_.push_back(std::make_unique<Player>(scenario_, r, *engines_[static_cast<size_t>(r)]));
  }
  ~Play() { callers_.clear(), engines_.clear(); }  // the players' tensors live as long

  std::string run(Way way) {
    way == Way::turns ? take_turns() : run_threads();
    std::string wrong = verdict(scenario_, outcomes());
    if (!end() && wrong.empty()) wrong = "a rank waits at its end for others, which have left";
    return wrong.empty() ? "" : scenario_.description() + "\n" + wrong;
  }

 private:
  void add_set(int id) {
    std::vector<Engine*> members;
    std::vector<int> hosts;
    for (const int rank : scenario_.sets[static_cast<size_t>(id)]) {
      members.push_back(engines_[static_cast<size_t>(rank)].get());
      if (!scenario_.hosts.empty()) hosts.push_back(scenario_.hosts[static_cast<size_t>(rank)]);
    }
    add_local_process_set(id, members, scenario_.delays, hosts);
  }

  // Some ranks are far slower than others.
  void take_turns() {
    Random random(~scenario_.seed);
    std::vector<size_t> draws;
    for (size_t r = 0; r < players_.size(); ++r) draws.insert(draws.end(), random.of<size_t>({1, 1, 3, 30}), r);
    const Deadline deadline = Deadline::in(Seconds(kLong));
    while (!is_over() && !deadline.passed()) {
      const size_t rank = random.of(draws);
      if (has_stopped(rank)) continue;
      if (random.one_in(3)) {
        for (uint64_t burst = random.of<uint64_t>({1, 2, 20}); burst > 0 && players_[rank]->next(); --burst) {
        }
      }
      for (uint64_t turns = random.of<uint64_t>({1, 1, 2, 10, 50}); turns > 0; --turns) engines_[rank]->take_turn();
      if (is_culprit(rank)) ++of_culprit_;
    }
  }

  void run_threads() {
    callers_.clear();
    const Deadline deadline = Deadline::in(Seconds(kLong));
    std::vector<std::thread> threads;
    for (const auto& player : players_) threads.emplace_back([&player, deadline] { player->play(deadline); });
    for (std::thread& thread : threads) thread.join();
  }

  bool is_culprit(size_t rank) const { return static_cast<int>(rank) == scenario_.culprit; }
  bool has_stopped(size_t rank) const {
    return scenario_.fault == Fault::stops && is_culprit(rank) && of_culprit_ >= scenario_.stops_after;
  }
  bool is_over() const {
    for (size_t r = 0; r < players_.size(); ++r)
      if (!players_[r]->is_over() && !has_stopped(r)) return false;
    return true;
  }

  // Of one that has stopped nothing is asked any more.
  std::vector<std::vector<Outcome>> outcomes() {
    std::vector<std::vector<Outcome>> outcomes;
    for (int task = 0; task < static_cast<int>(scenario_.tasks.size()); ++task) {
      outcomes.emplace_back();
      for (size_t r = 0; r < players_.size(); ++r) {
        outcomes.back().push_back(players_[r]->outcome(task));
        Outcome& o = outcomes.back().back();
        if (has_stopped(r) && o.how != Outcome::wrong) o.how = Outcome::right;
      }
    }
    return outcomes;
  }

  // All leave, in turns first: so no thread of an engine has to be woken for what is to be done.
  bool end() {
    for (const auto& engine : engines_) engine->begin_shutdown();
    for (int turns = 0; turns < 300 && !callers_.empty(); ++turns)
      for (size_t r = 0; r < engines_.size(); ++r)
        if (!has_stopped(r)) engines_[r]->take_turn();
    callers_.clear();
    const bool stopped = scenario_.fault == Fault::stops;
    bool all = true;
    for (const auto& engine : engines_) all &= engine->shutdown(stopped ? 0 : kLong);
    return all || stopped;
  }

  const Scenario scenario_;
  std::vector<std::unique_ptr<Player>> players_;
  std::vector<std::unique_ptr<Engine>> engines_;
  std::vector<std::unique_ptr<Engine::Caller>> callers_;
  uint64_t of_culprit_ = 0;  // draws
};

}  // namespace

std::string play(uint64_t seed, Way way) { return Play(seed).run(way); }

void play_many(uint64_t first, uint64_t count, double seconds, Way way) {
  const char* how = way == Way::turns ? "turns" : "threads";
  const Deadline end = Deadline::in(Seconds(seconds));
  auto said = Clock::now();
  uint64_t played = 0;
  for (; played < count && !end.passed(); ++played) {
    const uint64_t seed = first + played;
    const std::string wrong = play(seed, way);
    if (!wrong.empty())
      fail(ErrorKind::internal, "seed ", seed, ": ", wrong, "\nagain: run --play ", how, " ", seed, " 1");
    if (Clock::now() - said < std::chrono::seconds(10)) continue;
    said = Clock::now();
    std::printf("... %llu scenarios played in %s\n", static_cast<unsigned long long>(played + 1), how);
    std::fflush(stdout);
  }
  std::printf("%llu scenarios played in %s, each as it must be\n", static_cast<unsigned long long>(played), how);
}

}  // namespace ringdp::tests
