// Meetings by messages (agree/doubling.h): every order of events of a few ranks, and random orders of more.
//
// The ranks are real; what is between them is the local transport. Each rank comes to each name, as often as the scenario
// says, in any order, and takes what has come at any time; some may leave at any time. In place of a sum the payloads
// are merged into a digest of both sides, which shows the order of all additions.
#include "agree/doubling.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "agree/digest.h"
#include "check.h"
#include "collectives/power.h"
#include "transport/local.h"

using namespace ringdp;

namespace {

struct Scenario {
  int ranks = 2, names = 1, times = 1;
  std::vector<std::pair<int, int>> different{};  // (rank, name): has another signature there
  std::vector<int> leave_early{};                // these may leave at any time, the others when nothing is left to do
};

struct Event {
  enum Kind { come, poll, leave } kind;
  int rank, name;
};

uint64_t contribution(int rank, int name, int time) {
  return Digest().add(uint64_t(rank)).add(uint64_t(name)).add(uint64_t(time)).value();
}
uint64_t merged(uint64_t left, uint64_t right) { return Digest().add(left).add(right).value(); }

// What the ranks with numbers [first, first + 2^level) have merged.
uint64_t expected(int ranks, int level, int first, int name, int time) {
  if (level > 0)
    return merged(expected(ranks, level - 1, first, name, time),
                  expected(ranks, level - 1, first + (1 << (level - 1)), name, time));
  for (int r = 0; r < ranks; ++r) {
    const PowerOfTwo power(ranks, r);
    if (power.hands_over() || power.number() != first) continue;
    const uint64_t mine = contribution(r, name, time);
    return power.stands_in() ? merged(contribution(r - 1, name, time), mine) : mine;
  }
  CHECK(false);
  return 0;
}

class Ranks {
 public:
  struct Outcome {
    bool agreed;
    int left;
    uint64_t ticket, merged;
    bool operator==(const Outcome& o) const {
      return agreed == o.agreed && left == o.left && ticket == o.ticket && merged == o.merged;
    }
  };

  Ranks(const Scenario& scenario, uint64_t delay_seed) : scenario_(scenario) {
    const auto hub = make_local_hub(scenario.ranks, delay_seed);
    for (int r = 0; r < scenario.ranks; ++r) {
      Rank rank;
      rank.transport = make_local_transport(hub, r);
      rank.doubling = std::make_unique<Doubling>(*rank.transport, 0, delay_seed % 2 == 1, merge);
      rank.begun.assign(static_cast<size_t>(scenario.names), 0);
      rank.ended = rank.begun;
      ranks_.push_back(std::move(rank));
    }
  }

  // All that can happen next; a poll may find nothing.
  std::vector<Event> possible() const {
    std::vector<Event> events;
    for (int r = 0; r < scenario_.ranks; ++r) {
      const Rank& rank = ranks_[r];
      for (int n = 0; n < scenario_.names; ++n)
        if (may_come(rank, n)) events.push_back({Event::come, r, n});
      if (may_leave(rank, r)) events.push_back({Event::leave, r, 0});
      events.push_back({Event::poll, r, 0});
    }
    return events;
  }

  bool apply(const Event& event) {  // true if anything has changed
    Rank& rank = ranks_[event.rank];
    if (event.kind == Event::come) come(rank, event.rank, event.name);
    if (event.kind == Event::leave) rank.left = true, rank.doubling->leave();
    bool moved = event.kind != Event::poll || rank.doubling->poll();
    while (Meetings::Meeting* meeting = rank.doubling->next_complete()) {
      end(rank, *meeting);
      moved = true;
    }
    return moved;
  }

  // Where nothing more can happen.
  void check_end() const {
    for (int r = 0; r < scenario_.ranks; ++r) {
      const Rank& rank = ranks_[r];
      const bool early = contains(scenario_.leave_early, r);
      CHECK(scenario_.leave_early.empty() || rank.doubling->all_left(), "rank ", r, " of ", scenario_.ranks,
            " waits for others to leave, has left: ", rank.left, ", busy: ", rank.doubling->busy());
      for (int n = 0; n < scenario_.names; ++n) {
        CHECK(early || rank.begun[n] == rank.ended[n], "rank ", r, " waits in name ", n);
        CHECK(!scenario_.leave_early.empty() || rank.ended[n] == scenario_.times);
      }
      for (const auto& [which, outcome] : rank.outcomes) check(r, which, outcome);
    }
  }

  int ended() const { return ended_; }
  int left() const { return left_; }

 private:
  struct Rank {
    std::unique_ptr<Transport> transport;
    std::unique_ptr<Doubling> doubling;
    std::vector<int> begun, ended;                    // by name
    std::map<std::pair<int, int>, Outcome> outcomes;  // by name and time
    bool left = false;
  };

  static void merge(const Meetings::Meeting& meeting, std::byte* mine, const std::byte* theirs, bool mine_is_left) {
    CHECK(meeting.mine.bytes == sizeof(uint64_t));
    uint64_t a, b;
    std::memcpy(&a, mine, sizeof a);
    std::memcpy(&b, theirs, sizeof b);
    const uint64_t both = mine_is_left ? merged(a, b) : merged(b, a);
    std::memcpy(mine, &both, sizeof both);
  }

  static bool contains(const std::vector<int>& all, int one) {
    return std::find(all.begin(), all.end(), one) != all.end();
  }
  bool differs(int rank, int name) const {
    const auto& all = scenario_.different;
    return std::find(all.begin(), all.end(), std::pair(rank, name)) != all.end();
  }
  bool differs_somewhere(int name) const {
    return std::any_of(scenario_.different.begin(), scenario_.different.end(),
                       [&](const auto& d) { return d.second == name; });
  }
  bool may_come(const Rank& rank, int name) const {
    return !rank.left && rank.doubling->first_left() < 0 && rank.begun[name] < scenario_.times &&
           rank.begun[name] == rank.ended[name];
  }
  bool may_leave(const Rank& rank, int r) const {
    if (scenario_.leave_early.empty() || rank.left) return false;
    if (contains(scenario_.leave_early, r)) return true;
    if (rank.begun != rank.ended) return false;
    return rank.doubling->first_left() >= 0 ||
           std::all_of(rank.ended.begin(), rank.ended.end(), [&](int times) { return times == scenario_.times; });
  }

  void come(Rank& rank, int r, int name) {
    const uint64_t mine = contribution(r, name, rank.begun[name]);
    Note note;
    note.key = static_cast<uint64_t>(name) + 1;
    note.signature = differs(r, name) ? 200 : 100;
    note.bytes = differs(r, name) ? 0 : sizeof mine;
    if (r == 0) note.ticket = tickets_++;
    ++rank.begun[name];
    rank.doubling->come(note, &mine, static_cast<uint64_t>(name));
  }

  void end(Rank& rank, Meetings::Meeting& meeting) {
    const int name = static_cast<int>(meeting.token), time = rank.ended[name]++;
    Outcome outcome{meeting.agreed, meeting.left, meeting.ticket, 0};
    CHECK(!outcome.agreed || meeting.merged.size() == sizeof outcome.merged);
    if (outcome.agreed) std::memcpy(&outcome.merged, meeting.merged.data(), sizeof outcome.merged);
    rank.doubling->close(meeting);
    ++ended_;
    left_ += outcome.left >= 0;
    const auto [first, is_first] = first_.emplace(std::pair(name, time), outcome);
    CHECK(first->second == outcome, "two ranks end name ", name, " in other ways");
    if (is_first && outcome.left < 0) CHECK(sequences_.insert(outcome.ticket).second, "a ticket that was used before");
    rank.outcomes.emplace(std::pair(name, time), outcome);
  }

  void check(int r, const std::pair<int, int>& which, const Outcome& outcome) const {
    const auto [name, time] = which;
    CHECK(outcome.left < 0 || !scenario_.leave_early.empty(), "nobody leaves before the end");
    if (outcome.left >= 0) return;
    CHECK(outcome.agreed != differs_somewhere(name), "rank ", r, " name ", name);
    int levels = 0;
    while (1 << (levels + 1) <= scenario_.ranks) ++levels;
    if (outcome.agreed) CHECK(outcome.merged == expected(scenario_.ranks, levels, 0, name, time), "rank ", r);
  }

  const Scenario scenario_;
  std::vector<Rank> ranks_;
  std::map<std::pair<int, int>, Outcome> first_;
  std::set<uint64_t> sequences_;
  uint64_t tickets_ = 0;
  int ended_ = 0, left_ = 0;
};

struct Seen {
  uint64_t orders = 0, ended = 0, left = 0;
};

// Every order of events: each prefix is run again from the beginning. A poll that finds nothing changes nothing.
void explore(const Scenario& scenario, std::vector<Event>& path, Seen& seen) {
  Ranks ranks(scenario, 0);
  for (size_t i = 0; i < path.size(); ++i)
    if (!ranks.apply(path[i])) return;
  bool any = false;
  for (const Event& event : ranks.possible()) {
    if (event.kind == Event::poll) {
      Ranks copy(scenario, 0);
      for (const Event& before : path) copy.apply(before);
      if (!copy.apply(event)) continue;
    }
    any = true;
    path.push_back(event);
    explore(scenario, path, seen);
    path.pop_back();
  }
  if (any) return;
  ranks.check_end();
  ++seen.orders;
  seen.ended += static_cast<uint64_t>(ranks.ended());
  seen.left += static_cast<uint64_t>(ranks.left());
}

Seen every_order(const Scenario& scenario) {
  Seen seen;
  std::vector<Event> path;
  explore(scenario, path, seen);
  return seen;
}

Seen random_orders(const Scenario& scenario, int runs) {
  Seen seen;
  for (int run = 1; run <= runs; ++run) {
    std::minstd_rand random(static_cast<unsigned>(run));
    Ranks ranks(scenario, static_cast<uint64_t>(run % 3 == 0 ? 0 : run));
    for (int still = 0; still < 40 * scenario.ranks;) {
      const std::vector<Event> events = ranks.possible();
      const Event& event = events[random() % events.size()];
      still = ranks.apply(event) ? 0 : still + 1;
    }
    for (int turn = 0; turn < 20; ++turn)
      for (const Event& event : ranks.possible()) ranks.apply(event);
    ranks.check_end();
    ++seen.orders;
    seen.ended += static_cast<uint64_t>(ranks.ended());
    seen.left += static_cast<uint64_t>(ranks.left());
  }
  return seen;
}

}  // namespace

TEST(ranks_that_meet_by_messages_end_alike_in_every_order) {
  const Seen two = every_order({2, 2, 1});
  CHECK(two.orders > 500 && two.ended == 4 * two.orders, two.orders);
  const Seen three = every_order({3, 1, 1});
  CHECK(three.orders > 20 && three.ended == 3 * three.orders, three.orders);
}

TEST(a_difference_is_seen_by_all_in_every_order) {
  every_order({2, 2, 1, {{1, 0}}});
  for (int rank = 0; rank < 3; ++rank) every_order({3, 1, 1, {{rank, 0}}});
}

TEST(a_rank_may_leave_at_any_time_in_every_order) {
  for (int rank = 0; rank < 2; ++rank) {
    const Seen seen = every_order({2, 1, 1, {}, {rank}});
    CHECK(seen.left > 0 && seen.left < seen.ended, seen.left, " of ", seen.ended);
  }
}

TEST(many_ranks_and_names_meet_in_random_orders) {
  for (int ranks = 1; ranks <= 9; ++ranks) {
    random_orders({ranks, 5, 3}, 40);
    if (ranks > 1) random_orders({ranks, 4, 2, {{ranks / 2, 1}, {ranks - 1, 3}}}, 40);
  }
}

TEST(ranks_leave_in_random_orders) {
  for (int early = 0; early < 3; ++early) random_orders({3, 1, 2, {}, {early}}, 1000);
  for (int ranks = 2; ranks <= 9; ++ranks)
    for (int early = 0; early < ranks; ++early) {
      const Seen one = random_orders({ranks, 3, 2, {{ranks - 1, 0}}, {early}}, 40);
      CHECK(one.left > 0);
      random_orders({ranks, 3, 2, {}, {early, (early + 2) % ranks}}, 20);
    }
}

// One that has given a meeting up, and left, still tells others what they hear through it.
TEST(who_waits_for_nothing_any_more_still_relays) {
  constexpr int kRanks = 4, kAbandons = 1;
  const auto hub = make_local_hub(kRanks, 0);
  std::vector<std::unique_ptr<Transport>> transports;
  std::vector<std::unique_ptr<Doubling>> ranks;
  for (int r = 0; r < kRanks; ++r) {
    transports.push_back(make_local_transport(hub, r));
    ranks.push_back(std::make_unique<Doubling>(*transports[r], 0, false, nullptr));
  }
  const auto come = [&](int r) -> Meetings::Meeting& {
    Note note;
    note.topic = Meetings::damage;
    note.key = note.signature = 1;
    return ranks[r]->come(note, nullptr, 0);
  };
  // The others have operations under way, whose end they wait for.
  const auto has_ended = [&](int r) { return r == kAbandons && ranks[r]->all_left() && !ranks[r]->relays(); };
  const auto turns = [&] {
    for (int turn = 0; turn < 100; ++turn)
      for (int r = 0; r < kRanks; ++r)
        if (!has_ended(r)) ranks[r]->poll();
  };
  ranks[kAbandons]->abandon(come(kAbandons));
  std::vector<Meetings::Meeting*> meetings(kRanks, nullptr);
  for (const int r : {2, 3}) meetings[r] = &come(r);
  for (auto& rank : ranks) rank->leave();
  turns();
  for (int r = 0; r < kRanks; ++r) CHECK(ranks[r]->all_left(), "rank ", r);
  CHECK(!meetings[3]->complete, "it lacks rank 0, of which it hears through rank 1");
  meetings[0] = &come(0);
  turns();
  for (const int r : {0, 2, 3}) CHECK(meetings[r]->complete && meetings[r]->agreed, "rank ", r);
}
