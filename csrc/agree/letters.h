// Agreement of ranks that share memory: each rank tells all others what it has submitted, in letters (shared/mail.h).
//
// A *meeting* is about one thing, the same on every rank: a named operation, the places of an operation's memory, a vote. A
// rank *comes* to it with a letter, whose payload may be the data itself; the meeting is complete when the letters of
// all members are there. They come in any order; one about a thing that this rank has not come to yet waits. The k-th
// letter of a member about a thing belongs to its k-th meeting: a member sends the next one only after the one before was
// complete for it.
//
// Every rank sees every letter, so all see alike whether they agree: no further exchange is needed, and none waits for
// another to tell it. What the ranks of several hosts need instead is in agree/rounds.h.
#pragma once

#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

#include "shared/host.h"
#include "shared/mail.h"

namespace ringdp {

class Letters {
 public:
  enum Topic : uint32_t { named, place, vote, leaving };

  struct Received {
    bool here = false;
    Letter letter;
    std::vector<std::byte> payload;
  };
  struct Meeting {
    std::vector<Received> from;  // by member
    int missing = 0;
    uint64_t token = 0;                           // the caller's
    std::vector<std::pair<int, Received>> later;  // of the next meetings about the same thing
    bool complete() const { return missing == 0; }
    bool agreed() const;  // after complete(): all signatures are the same, and nobody sent poison
    bool poisoned() const;
  };

  // members: their ranks in the process set, in order; at(i): where member i's part of the mail lies.
  // One member alone needs no host.
  Letters(std::shared_ptr<Host> host, std::vector<int> members, int me, const std::vector<std::byte*>& parts,
          std::vector<int> world_ranks);

  int me() const { return me_; }
  const std::vector<int>& members() const { return members_; }
  int world_rank(int member) const { return world_ranks_[member]; }
  Host* host() const { return host_.get(); }

  // This rank comes to a meeting. It stays valid until it is closed.
  Meeting& come(const Letter& letter, const void* payload, uint64_t token);
  void close(Meeting& meeting);  // complete, or given up by all

  // Takes what has come; calls complete(topic, meeting) for each that became complete by it or by come().
  template <class Complete>
  bool poll(Complete&& complete) {
    bool moved = mail_ && mail_->poll([this](int member, const Letter& letter, const void* payload) {
      receive(member, letter, static_cast<const std::byte*>(payload));
    });
    while (!complete_.empty()) {
      Meeting& meeting = *complete_.front();
      complete_.pop_front();
      complete(static_cast<Topic>(meeting.from[me_].letter.topic), meeting);
      moved = true;
    }
    return moved;
  }

  // This rank will come to nothing more. Others that have said so: how many; this one; and which one began. Those that
  // leave because another has left name it in their letter, so whoever hears of them first names it too. -1: none.
  void leave();
  int first_left() const { return first_left_; }
  int left() const { return left_count_; }
  bool has_left(int rank) const;
  template <class Act>
  void for_each_open(const Act& act) {
    for (auto& [subject, meeting] : meetings_)
      if (meeting->from[me_].here && !meeting->complete()) act(static_cast<Topic>(subject.topic), *meeting);
  }
  bool lacks_one_that_left(const Meeting& meeting) const;

  void ring() const;  // wakes the other members

 private:
  struct Subject {
    uint64_t key;
    uint32_t lane, topic;
    bool operator==(const Subject& o) const { return key == o.key && lane == o.lane && topic == o.topic; }
  };
  struct Hash {
    size_t operator()(const Subject& s) const { return (s.key ^ s.lane << 8 ^ s.topic) * 0x9e3779b97f4a7c15ull; }
  };
  using Meetings = std::unordered_map<Subject, std::unique_ptr<Meeting>, Hash>;
  static Subject subject_of(const Letter& l) { return {l.key, l.lane, l.topic}; }
  Meeting& meeting_about(const Subject& subject);
  void receive(int member, const Letter& letter, const std::byte* payload);
  void take(Meeting& meeting, int member, const Letter& letter, const std::byte* payload);

  const std::shared_ptr<Host> host_;
  const std::vector<int> members_, world_ranks_;
  const int me_;
  std::unique_ptr<Mail> mail_;
  Meetings meetings_;
  std::vector<Meetings::node_type> spare_;  // with the memory of their payloads
  std::deque<Meeting*> complete_;
  std::vector<bool> has_left_;
  int left_count_ = 0;
  int first_left_ = -1;
};

}  // namespace ringdp
