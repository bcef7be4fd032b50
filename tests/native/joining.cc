// Ranks that join (agree/meetings.h): whatever the order of events, every meeting of an era ends on every rank, and alike,
// on those that have joined as well.
//
// In each era a rank comes to as many names as it has data for, in any order and without waiting, then joins; when all
// have, the next era begins with the same names. The ranks meet by messages over the local transport, as in meetings.cc.
#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <tuple>
#include <utility>
#include <vector>

#include "agree/doubling.h"
#include "check.h"
#include "transport/local.h"

using namespace ringdp;

namespace {

constexpr uint64_t kJoinKey = 1000, kJoinToken = 1000;

struct Outcome {
  bool agreed, joined;
  uint64_t ticket;
  bool operator==(const Outcome& o) const { return agreed == o.agreed && joined == o.joined && ticket == o.ticket; }
};

class Ranks {
 public:
  // amounts[era][rank]: to how many names it comes.
  Ranks(std::vector<std::vector<int>> amounts, uint64_t delay_seed) : amounts_(std::move(amounts)) {
    const int size = static_cast<int>(amounts_[0].size());
    const auto hub = make_local_hub(size, delay_seed);
    for (int r = 0; r < size; ++r) {
      ranks_.emplace_back();
      Rank& rank = ranks_.back();
      rank.transport = make_local_transport(hub, r);
      rank.doubling =
          std::make_unique<Doubling>(*rank.transport, 0, true, [](const auto&, std::byte*, const std::byte*, bool) {});
      rank.doubling->draw_ticket = [this] { return tickets_++; };
      rank.draws = rank.doubling->drawer() == r;
      rank.fill(amounts_[0][r]);
    }
  }

  bool done() const {
    const auto is_done = [&](const Rank& rank) { return rank.era == eras() && !rank.doubling->busy(); };
    return std::all_of(ranks_.begin(), ranks_.end(), is_done);
  }

  void anything(std::minstd_rand& random) {
    const int r = static_cast<int>(random() % ranks_.size());
    Rank& rank = ranks_[r];
    if (random() % 2 == 0) {
      rank.doubling->poll();
      while (Meetings::Meeting* meeting = rank.doubling->next_complete()) end(rank, *meeting);
    } else if (rank.era < eras() && !rank.joined) {
      rank.names.empty() ? join(rank) : come(rank, random());
    }
  }

  void check_end() const {
    for (uint32_t era = 0; era < eras(); ++era) {
      const std::vector<int>& of_rank = amounts_[era];
      const int most = *std::max_element(of_rank.begin(), of_rank.end());
      for (int name = 0; name < most; ++name) {
        const auto active = std::count_if(of_rank.begin(), of_rank.end(), [&](int amount) { return amount > name; });
        const auto seen = ended_.find({era, name});
        CHECK(seen != ended_.end(), "era ", era, " name ", name);
        CHECK(seen->second.size() == ranks_.size(), "era ", era, " name ", name, " ended ", seen->second.size());
        for (const Outcome& outcome : seen->second) {
          CHECK(outcome == seen->second[0] && outcome.agreed);
          CHECK(outcome.joined == (active < static_cast<int64_t>(ranks_.size())), "era ", era, " name ", name);
        }
      }
    }
  }

 private:
  struct Rank {
    std::unique_ptr<Transport> transport;
    std::unique_ptr<Doubling> doubling;
    std::vector<int> names;  // that it has still to come to
    uint32_t era = 0;
    bool joined = false, draws = false;

    void fill(int amount) {
      for (int name = 0; name < amount; ++name) names.push_back(name);
    }
  };

  uint32_t eras() const { return static_cast<uint32_t>(amounts_.size()); }

  void come(Rank& rank, unsigned which) {
    const auto at = rank.names.begin() + which % rank.names.size();
    Note note;
    note.topic = Meetings::named;
    note.key = static_cast<uint64_t>(*at);
    note.lane = rank.era;
    note.signature = 100 + note.key;
    if (rank.draws) note.ticket = tickets_++;
    const uint64_t token = note.key;
    rank.names.erase(at);
    rank.doubling->come(note, nullptr, token);
  }

  void join(Rank& rank) {
    rank.joined = true;
    rank.doubling->join();
    Note note;
    note.topic = Meetings::named;
    note.key = kJoinKey;
    note.lane = rank.era;
    note.flags = Note::kAwaits;
    if (rank.draws) note.ticket = tickets_++;
    rank.doubling->come(note, nullptr, kJoinToken);
  }

  void end(Rank& rank, Meetings::Meeting& meeting) {
    const bool is_join = meeting.mine.key == kJoinKey;
    if (!is_join) {
      const auto which = std::pair(meeting.mine.lane, static_cast<int>(meeting.mine.key));
      ended_[which].push_back({meeting.agreed, meeting.joined, meeting.ticket});
    }
    rank.doubling->close(meeting);
    if (!is_join) return;
    rank.doubling->end_join();
    rank.joined = false;
    if (++rank.era < eras()) rank.fill(amounts_[rank.era][static_cast<size_t>(rank.transport->rank())]);
  }

  const std::vector<std::vector<int>> amounts_;
  std::vector<Rank> ranks_;
  std::map<std::pair<uint32_t, int>, std::vector<Outcome>> ended_;
  uint64_t tickets_ = 0;
};

}  // namespace

TEST(ranks_join_in_random_orders) {
  for (int size = 1; size <= 9; ++size)
    for (unsigned run = 1; run <= 60; ++run) {
      std::minstd_rand random(run * 16 + static_cast<unsigned>(size));
      std::vector<std::vector<int>> amounts(3, std::vector<int>(static_cast<size_t>(size)));
      for (auto& of_rank : amounts)
        for (int& amount : of_rank) amount = static_cast<int>(random() % 4);
      Ranks ranks(amounts, run % 3 == 0 ? 0 : run);
      int64_t events = 0;
      for (; !ranks.done() && events < 2'000'000; ++events) ranks.anything(random);
      CHECK(ranks.done(), size, " ranks, run ", run, ": some wait for ever");
      for (int more = 0; more < 2000; ++more) ranks.anything(random);  // nothing is left to be heard
      ranks.check_end();
    }
}
