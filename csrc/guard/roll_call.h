// Who is to blame that this rank waits: asked when it has waited for RINGDP_REPORT_AFTER seconds, and now and then later.
//
// What the ranks of this host are at, their recorders and the kernel say (guard/survey.h). Of each other host one rank is
// asked, which answers for all there; if it does not, the next one is; if none does, the host is unreachable. Nobody waits for
// an answer: the engines go on.
//
// What comes of it is the *verdict*. It is made before a wait ends, so that whoever waits is told who is to blame.
#pragma once

#include <atomic>
#include <functional>
#include <list>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/error.h"
#include "base/options.h"
#include "guard/dispatches.h"
#include "guard/survey.h"
#include "guard/watch.h"

namespace ringdp {

// Of this rank, for others.
struct Wait {
  Question question;
  std::string what;  // is waited for, in words
  Clock::time_point since;
  std::vector<int> ranks;  // of the job: those that must come
};

class RollCall {
 public:
  // `control`: of all ranks of the job. It and the watch must outlive this.
  RollCall(const Options& options, Transport& control, Watch& watch);

  // Some times a second: answers others, goes on with what was asked, and asks if it is time for that. `longest`: the longest
  // wait of this rank, if it waits at all.
  using Longest = std::function<std::optional<Wait>()>;
  void look(const Longest& longest);

  // Whether a wait that began then is to end now: not before it was found out why.
  bool is_over(Clock::time_point since) const;
  // Why this rank waits no more, with who is to blame.
  Error late(const std::string& text);
  // By any thread: until then (nanoseconds) others may have to be waited for, as their users have said.
  int64_t patient_until() const { return patient_until_.load(); }

  // How long until the ranks of other hosts have answered, or never will: seconds.
  double patience() const;

 private:
  // What is asked. It travels as it is; behind an answer come those to blame.
  struct Message {
    static constexpr uint32_t kMagic = 0x72636c6c, kVersion = 2, kMostSeen = 8;
    uint32_t magic = kMagic, version = kVersion;
    uint32_t count = 0;   // of an answer: those that follow
    uint32_t absent = 0;  // of an answer: how many have not come, those that follow among them
    Question question;
  };
  struct Host {
    std::vector<int> ranks;  // that can answer for it
    size_t asked = 0;        // so many of them
    Clock::time_point last;
    bool answered = false;
    bool has(int rank) const;
  };
  using Stacks = std::map<int, uint64_t>;  // bytes that were there before Python was asked for them, by rank
  struct Call {
    Wait wait;
    Clock::time_point began;
    std::map<int, Seen> seen;  // by rank
    std::vector<Host> hosts;   // the others
    uint32_t not_named = 0;    // so many more of other hosts have not come
    bool has_looked = false;   // at this host
    Stacks stacks;
    std::string missed;  // what is asked for is not this rank's wait, but others', to which it has not come: in words
  };
  struct Answering {  // once the Python stacks have been written
    int to;
    Question question;
    Clock::time_point due;
    Stacks stacks;
  };
  struct Verdict {
    std::string text;                               // the culprit, in a line
    std::string missed;                             // see Call
    bool is_gone = false;                           // it will not come
    bool is_told = false;                           // by this rank: of those who wait one speaks
    Clock::time_point asked_at, at, patient_until;  // `at`: made
  };

  void begin(Wait wait, std::string missed = "");
  void go_on();
  void end();
  std::string said_by_the_dead(const std::vector<Seen>& culprits) const;
  bool asks_for_others(const Call& call, const std::vector<Seen>& absent);
  void tell(const Call& call, const std::vector<Seen>& culprits) const;
  void ask(Host& host);
  Stacks ask_for_stacks(const Question& question) const;
  std::vector<Seen> look_at_host(const Question& question, const Stacks& stacks) const;
  void take_messages();
  void take_question(int from, const Question& question);
  void take_answer(int from, const Message& message, const std::byte* seen);
  void answer(const Answering& one);
  static std::vector<std::byte> bytes_of(const Question& question, const std::vector<Seen>& seen, size_t absent);

  const Options& options_;
  Watch& watch_;
  const int rank_, size_;
  Dispatches dispatches_;
  std::optional<Call> call_;  // this rank's, under way
  std::list<Answering> answering_;
  Clock::time_point reported_since_;  // the wait that was reported last,
  double reported_ = 0;               // after so many seconds
  Verdict verdict_;                   // the last one
  std::atomic<int64_t> patient_until_{0};
  static constexpr double kFresh = 30;  // seconds for which a verdict counts
};

}  // namespace ringdp
