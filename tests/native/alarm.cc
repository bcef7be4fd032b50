// A death on one host, told to the others: real processes die, and ranks without engines hear of it.
#include "guard/alarm.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include "check.h"
#include "transport/local.h"

using namespace ringdp;

namespace {

constexpr double kLong = 30;  // seconds that nothing here takes

// A process with a recorder, which does nothing.
class Process {
 public:
  explicit Process(int rank, int size) : path_("/tmp/ringdp-alarm-" + std::to_string(getpid()) + ".flight") {
    int ready[2];
    CHECK(pipe(ready) == 0);
    pid_ = fork();
    if (pid_ == 0) {
      const Flight flight(path_, {rank, size, 0, 1, "test"});
      flight.head().standing.store(Standing::running);
      [[maybe_unused]] const auto written = write(ready[1], "r", 1);
      while (true) sleep(1);
    }
    char told;
    CHECK(read(ready[0], &told, 1) == 1);
    close(ready[0]), close(ready[1]);
  }
  ~Process() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    unlink(path_.c_str());
  }
  void end() { CHECK(kill(pid_, SIGKILL) == 0); }
  const std::string& path() const { return path_; }
  int pid() const { return pid_; }

 private:
  const std::string path_;
  int pid_;
};

// Ranks 0 and 1 on one host, of which 1 is a process; rank 2 and 3 on another.
struct Job {
  Job() : hub(make_local_hub(4, 0)), process(1, 4) {
    for (const int rank : {0, 2, 3}) {
      auto watch = std::make_unique<Watch>(std::make_shared<Flight>("", Flight::Owner{rank, 4, 0, 1, "test"}));
      watch->set_places({0, 0, 2, 2}, {"n0", "n0", "n1", "n1"});
      controls.push_back(make_local_transport(hub, rank));
      alarms.push_back(std::make_unique<Alarm>(*controls.back(), *watch));
      watches.push_back(std::move(watch));
    }
    watches[0]->place({0, 4, 0, 1, "test"}, "/dev/null/nowhere");  // no report
    CHECK(watches[0]->attach(1, process.path(), 0).empty(), "its recorder is there");
    watches[0]->start(0);
  }
  Alarm& alarm(int rank) { return *alarms[rank == 0 ? 0 : rank - 1]; }
  Watch& watch(int rank) { return *watches[rank == 0 ? 0 : rank - 1]; }

  std::string heard_by(int rank) {
    const Deadline deadline = Deadline::in(Seconds(kLong));
    while (!deadline.passed()) {
      alarm(0).look();
      if (const auto verdict = alarm(rank).look()) return *verdict;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return "";
  }

  std::shared_ptr<LocalHub> hub;
  Process process;
  std::vector<std::unique_ptr<Transport>> controls;
  std::vector<std::unique_ptr<Watch>> watches;
  std::vector<std::unique_ptr<Alarm>> alarms;
};

}  // namespace

TEST(each_rank_of_other_hosts_is_told_of_a_death_by_two_survivors_if_there_are_two) {
  const std::vector<int> groups = {0, 0, 0, 3, 3, 5, 0, 5, 5, 5, 5};
  for (const std::vector<int>& dead : {std::vector<int>{1}, {0, 2}, {6, 0}, {0, 1, 2}}) {
    std::vector<int> told(groups.size(), 0);
    int survivors = 0;
    for (const int rank : {0, 1, 2, 6}) {
      if (std::find(dead.begin(), dead.end(), rank) != dead.end()) continue;
      ++survivors;
      for (const int listener : Alarm::listeners(rank, groups, dead)) ++told[listener];
    }
    for (size_t r = 0; r < groups.size(); ++r)
      CHECK(told[r] == (groups[r] == 0 ? 0 : std::min(survivors, 2)), "rank ", r, " is told ", told[r], " times");
  }
}

TEST(a_death_is_heard_of_on_other_hosts) {
  Job job;
  for (const int rank : {0, 2, 3}) CHECK(!job.alarm(rank).look(), "nobody has died");
  job.process.end();
  const std::string pid = std::to_string(job.process.pid());
  for (const int rank : {2, 3}) {
    const std::string verdict = job.heard_by(rank);
    CHECK(verdict.find("rank 1 (host ") == 0 && verdict.find("process " + pid + ") is dead") != std::string::npos,
          "rank ", rank, ": ", verdict);
    CHECK(job.watch(rank).heard_of_death() && job.watch(rank).has_fault());
    CHECK(job.watch(rank).verdict() == verdict && job.watch(0).verdict() == verdict, "all say the same");
  }
  CHECK(!job.watch(0).heard_of_death(), "it has seen it");
}

TEST(who_asks_because_a_message_has_failed_hears_what_is_on_its_way) {
  Job job;
  std::thread survivor([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    job.process.end();
    while (!job.alarm(0).look()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  });
  std::optional<std::string> verdict;
  while (!verdict) verdict = job.alarm(2).look_for_a_while();
  survivor.join();
  CHECK(verdict->find("is dead") != std::string::npos, *verdict);
}

TEST(an_exception_is_noted_on_other_hosts_and_ends_nothing_there) {
  Job job;
  job.alarm(0).tell_of_exception("rank 0 (host n0, process 7) was ended by ValueError: x");
  for (const int rank : {2, 3}) {
    const Deadline deadline = Deadline::in(Seconds(kLong));
    while (!job.watch(rank).has_fault() && !deadline.passed()) {
      CHECK(!job.alarm(rank).look(), "rank ", rank);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    CHECK(job.watch(rank).verdict() == "rank 0 (host n0, process 7) was ended by ValueError: x");
    CHECK(!job.watch(rank).heard_of_death(), "rank ", rank);
  }
  CHECK(job.alarm(0).has_told());
}

TEST(what_is_no_alarm_is_passed_over) {
  Job job;
  Alarm::Message message;
  std::memset(message.verdict, 'x', sizeof message.verdict);  // without an end
  std::vector<std::byte> data(sizeof message);
  std::memcpy(data.data(), &message, sizeof message);
  const auto parsed = Alarm::parse(data);
  CHECK(parsed && text_of(parsed->verdict).size() == sizeof message.verdict - 1);
  std::vector<Request> requests;
  for (const size_t bytes : {size_t{0}, size_t{5}, data.size() - 1})
    requests.push_back(job.controls[0]->send(2, Dispatches::alarm, data.data(), bytes));
  data[0] ^= std::byte{1};
  requests.push_back(job.controls[0]->send(2, Dispatches::alarm, data.data(), data.size()));
  for (int look = 0; look < 3; ++look) {
    CHECK(!job.alarm(2).look_for_a_while());
    CHECK(!job.watch(2).has_fault());
  }
}
