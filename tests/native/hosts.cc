// The simulator on several hosts with several ranks each: messages between hosts, tokens and areas inside them.
//
// The schedule is the plainest there is. In each host the first rank, its leader, sums what the others have laid into
// their areas; leaders send their sums to the first of all, which sends them the total; each lays it into its area,
// out of which the others of its host take it:
//
//   a leader     signal 1   await 1, reduce …   send, receive   copy to its area, signal 2, 3               await 3
//   the others   copy to their areas, signal 1, 2                                     await 2, copy, signal 3
//
// An await is for all others of the host, so each of them tells of every number.
#include <algorithm>
#include <string>
#include <vector>

#include "check.h"
#include "collectives/cases.h"
#include "collectives/levels.h"
#include "collectives/moves.h"

using namespace ringdp;
using namespace ringdp::simulate;
using ringdp::tests::error_of;

namespace {

constexpr uint64_t kCount = 3;
const std::vector<int> kHostOf = {0, 1, 0, 1, 1, 2};

class Leaders {
 public:
  Leaders(const std::vector<int>& host_of, int rank) : host_of_(host_of), rank_(rank), leader_(leader_of(rank)) {}

  Schedule schedule() {
    if (rank_ != leader_) {
      follow();
    } else {
      const int32_t total = exchange(sum_of_host());
      share(total);
    }
    return moves_.take(kCount, kCount);
  }

 private:
  int leader_of(int rank) const {
    return static_cast<int>(std::find(host_of_.begin(), host_of_.end(), host_of_[rank]) - host_of_.begin());
  }
  bool leads(int rank) const { return leader_of(rank) == rank; }
  int ranks() const { return static_cast<int>(host_of_.size()); }

  void follow() {
    const int32_t laid = moves_.copy(in_area_of(rank_, 0), in_input(0), kCount, false, {});
    moves_.signal({laid});
    moves_.signal({});
    const int32_t ready = moves_.await(2);
    const int32_t taken = moves_.copy(in_output(0), in_area_of(leader_, 0), kCount, false, {ready});
    moves_.signal({taken});
  }

  int32_t sum_of_host() {
    moves_.signal({});
    const int32_t laid = moves_.await(1);
    int32_t sum = moves_.copy(in_output(0), in_input(0), kCount, false, {});
    for (int other = 0; other < ranks(); ++other)
      if (other != rank_ && leader_of(other) == rank_)
        sum = moves_.reduce(in_output(0), in_area_of(other, 0), in_output(0), kCount, {sum, laid});
    return sum;
  }

  int32_t exchange(int32_t sum) {
    if (rank_ != 0) {
      const int32_t sent = moves_.send(0, in_output(0), kCount, {sum});
      return moves_.receive(0, in_output(0), kCount, {sent});
    }
    for (int other = 1; other < ranks(); ++other)
      if (leads(other)) {
        const int32_t received = moves_.receive(other, in_scratch(0), kCount, {sum});
        sum = moves_.reduce(in_output(0), in_output(0), in_scratch(0), kCount, {received});
      }
    for (int other = 1; other < ranks(); ++other)
      if (leads(other)) moves_.send(other, in_output(0), kCount, {sum});
    return sum;
  }

  void share(int32_t total) {
    const int32_t ready = moves_.copy(in_area_of(rank_, 0), in_output(0), kCount, false, {total});
    moves_.signal({ready});
    moves_.signal({});
    moves_.await(3);
  }

  const std::vector<int>& host_of_;
  const int rank_, leader_;
  Moves moves_;
};

Case case_on(const std::vector<int>& host_of) {
  Case c;
  c.ranks = static_cast<int>(host_of.size());
  c.counts = {kCount};
  c.sharing = Sharing::staged;
  c.host_of = host_of;
  return c;
}

std::vector<Schedule> schedules_on(const std::vector<int>& host_of) {
  std::vector<Schedule> schedules;
  for (int rank = 0; rank < static_cast<int>(host_of.size()); ++rank)
    schedules.push_back(Leaders(host_of, rank).schedule());
  return schedules;
}

std::string wrong_with(const std::vector<Schedule>& schedules) {
  return error_of([&] { check(case_on(kHostOf), schedules, 0, 2000); });
}
bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

bool is_about_memory(const std::string& error) {
  return has(error, "was never written") || has(error, "while it is") || has(error, "wrong output");
}

size_t place_of(const Schedule& schedule, Kind kind, int which = 1) {
  size_t i = 0;
  while (schedule.moves[i].kind != kind || --which > 0) ++i;
  return i;
}

// The schedules with one rank's move of a kind waiting for nothing.
std::vector<Schedule> hasty(int rank, Kind kind, int which) {
  std::vector<Schedule> schedules = schedules_on(kHostOf);
  Move& move = schedules[rank].moves[place_of(schedules[rank], kind, which)];
  for (int32_t& after : move.after) after = kNone;
  return schedules;
}

}  // namespace

TEST(levels_are_there_for_several_hosts_with_as_many_ranks) {
  for (const std::vector<int>& none : {std::vector<int>{}, {0}, {0, 0, 0}, {0, 1, 2}, {0, 0, 1}, {0, 1, 0, 1, 2}})
    for (int rank = 0; rank < static_cast<int>(none.size()) + 1; ++rank) CHECK(!levels_of(none, rank));
  const auto levels = levels_of({7, 3, 7, 3, 3, 7}, 4);
  CHECK(levels && levels->mates == std::vector<int>({1, 3, 4}) && levels->ring == std::vector<int>({5, 4}));
  CHECK(levels->me == 2 && levels->host == 1);
}

TEST(messages_and_tokens_go_together) {
  for (const std::vector<int>& host_of : {kHostOf, {0, 0, 0, 0}, {3, 2, 1}, {0, 0, 1, 1}, {7}})
    check(case_on(host_of), schedules_on(host_of), 0, 500);
}

TEST(what_is_broken_on_several_hosts_is_found) {
  struct Hasty {
    int rank;
    Kind kind;
    int which;
  };
  for (const auto& [rank, kind, which] : {
           Hasty{0, Kind::reduce, 1},  // a leader reads what the other has not laid there
           Hasty{1, Kind::send, 1},    // its sum is not complete
           Hasty{1, Kind::copy, 2},    // nor is the total
           Hasty{0, Kind::send, 2},    // to the third host
           Hasty{2, Kind::copy, 2},    // another rank takes what its leader has not laid there
           Hasty{4, Kind::signal, 1},  // and tells too early that it has laid its part there
       })
    CHECK(is_about_memory(wrong_with(hasty(rank, kind, which))), wrong_with(hasty(rank, kind, which)), " rank ", rank);
}

TEST(a_leader_that_does_not_await_the_others_ends_too_early) {
  std::vector<Schedule> schedules = schedules_on(kHostOf);
  schedules[1].moves.pop_back();
  CHECK(has(wrong_with(schedules), "reads rank 1's area after rank 1 has ended"), wrong_with(schedules));
}

TEST(tokens_are_those_of_the_host_and_so_is_memory) {
  std::vector<Schedule> schedules = schedules_on(kHostOf);
  schedules[4].moves[place_of(schedules[4], Kind::copy, 2)].from.owner = 0;  // its own leader is rank 1
  CHECK(has(wrong_with(schedules), "`from` lies on another host"), wrong_with(schedules));

  schedules = schedules_on(kHostOf);
  schedules[5].moves.push_back(schedules[1].moves.back());  // of nobody: rank 5 is alone
  schedules[5].moves.back().count = 9;
  CHECK(wrong_with(schedules).empty(), wrong_with(schedules));
  schedules[1].moves.back().count = 9;
  CHECK(has(wrong_with(schedules), "rank 3 never comes to signal 9"), wrong_with(schedules));
}

// An executor looks at one await at a time, in the order of the list. So a schedule whose later await must end for its
// earlier one to end is a deadlock, though no dependency says so.
TEST(awaits_that_are_listed_in_the_wrong_order_are_a_deadlock) {
  const auto schedules = [](bool wrong) {
    Moves first, second;
    int32_t one = kNone;
    if (wrong) first.await(2);
    one = first.await(1);
    if (!wrong) first.await(2);
    first.signal({one});
    first.signal({});
    second.signal({});
    second.signal({second.await(1)});
    return std::vector<Schedule>{first.take(), second.take()};
  };
  Case c = case_on({0, 0});
  c.counts = {0};
  check(c, schedules(false), 0, 200);
  const std::string error = error_of([&] { check(c, schedules(true), 0, 200); });
  CHECK(has(error, "rank 0, move 0 (await 2)"), error);
}
