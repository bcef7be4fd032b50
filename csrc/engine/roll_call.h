// Who is to blame that this rank waits: asked when it has waited for RINGDP_REPORT_AFTER seconds, and now and then later.
//
// What the ranks of this host are at, their recorders and the kernel say (guard/survey.h). Of each other host one rank is
// asked, which answers for all there; if it does not, the next one is; if none does, the host is unreachable. The questions
// go by the control communicator of all ranks, and nobody waits for an answer: the engines go on.
#pragma once

#include <list>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "guard/survey.h"
#include "transport/transport.h"

namespace ringdp {

// Of this rank.
struct RollCall {
  Question question;
  std::string what;         // is waited for, in words
  Clock::time_point since;  // this rank waits
  Clock::time_point began = Clock::now();
  std::set<int> ranks;       // of the job: those that must come
  std::map<int, Seen> seen;  // by rank
  struct Host {
    std::vector<int> ranks;  // that can answer for it
    size_t asked = 0;        // so many of them
    Clock::time_point last;
    bool answered = false;
  };
  std::vector<Host> hosts;  // the others
  bool has_looked = false;  // at this host
};

// What came of it.
struct Blame {
  std::string text;                            // the culprit, in a line
  bool is_gone = false;                        // it will not come
  bool is_told = false;                        // by this rank: of those who wait one speaks
  Clock::time_point began, at, patient_until;  // asked, and known
};

// Messages of roll calls, between the engines.
struct RollCallMessage {
  static constexpr uint32_t kMagic = 0x72636c6c, kVersion = 1, kMostSeen = 8;
  uint32_t magic = kMagic, version = kVersion;
  uint32_t count = 0;  // of an answer: those that follow
  uint32_t unused = 0;
  Question question;
};

// What this rank's engine has under way for roll calls.
struct RollCalls {
  static constexpr int kQuestionTag = 1, kAnswerTag = 2;  // beside ProcessSet::kMeetingsTag
  struct Sending {
    Request request;
    std::vector<std::byte> data;
  };
  struct Receiving {
    int from = -1, tag = 0;
    Request request;
    std::vector<std::byte> data;
  };
  struct Answering {  // once the Python stacks have been written
    int to = -1;
    Question question;
    Clock::time_point due;
    std::map<int, uint64_t> stacks;  // bytes that were there before, by rank
  };
  std::list<Sending> sending;
  std::list<Receiving> receiving;
  std::list<Answering> answering;
};

}  // namespace ringdp
