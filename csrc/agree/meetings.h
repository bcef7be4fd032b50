// How the ranks of a process set hear of each other before anything is done.
//
// A *meeting* is about one thing, the same on every rank: a named operation, the places of an operation's memory, a vote. A
// rank *comes* to it with a note, whose payload may be the data itself; the meeting is *complete* on a rank when it has
// heard of all. Each submits in its own order, so what comes about a thing that this rank has not come to yet waits. The
// k-th note of a rank about a thing belongs to its k-th meeting.
//
// Once complete, every rank knows the same: whether all mean the same, and the first rank's ticket, by which named
// operations are ordered. Nobody is asked twice, nobody is the master, and no rank waits for another to decide.
//
// How ranks hear of each other is the carrier's: by letters through shared memory (agree/letters.h), or by messages
// (agree/doubling.h).
//
// Joining: a rank that has joined has nothing more to contribute, until all have. It comes to each named operation that it
// hears of with a mark without a signature; the data then stay behind, for all ranks have to tell it first what the
// operation is. When all have joined, the next *era* begins. It is part of what a named operation is about: so what a rank
// has begun before it joined never meets what others begin afterwards, and a rank that hears of an operation of an earlier
// era that it has not come to knows that it never will.
//
// Leaving: a rank that leaves comes to nothing more, and all others soon hear that somebody has. Whoever has left, or has
// heard of it, comes to each named operation that it hears of, and has not come to, with a mark. So all meetings that lack
// somebody end, on all ranks, with the mark. A rank that leaves because it has failed says that, too.
#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "agree/note.h"

namespace ringdp {

class Meetings {
 public:
  enum Topic : uint32_t { named, place, vote, leaving, news, joining, bucket, order, damage, last_topic = damage };

  struct Received {
    bool here = false;
    Note note;
    std::vector<std::byte> payload;
  };
  struct Meeting {
    Note mine;
    bool here = false;        // this rank has come
    bool for_nobody = false;  // it came with the mark only, and nobody waits
    uint64_t token = 0;       // the caller's
    // Once complete, the same on all ranks:
    bool complete = false;
    bool agreed = false;  // all signatures are the same, nobody sent poison, nobody has left
    int left = -1;        // a rank that had left
    bool joined = false;  // a rank that had joined is among them; `agreed` is about the others
    uint64_t ticket = Note::kNoTicket;
    // The payloads: by member where each hears every other itself, or merged into one where they do not.
    std::vector<Received> from;
    std::vector<std::byte> merged;

    virtual ~Meeting() = default;
  };

  explicit Meetings(int rank) : rank_(rank) {}
  virtual ~Meetings() = default;
  Meetings(const Meetings&) = delete;
  Meetings& operator=(const Meetings&) = delete;

  // This rank comes. The meeting stays valid until it is closed. After leave() to no named operation.
  virtual Meeting& come(const Note& note, const void* payload, uint64_t token) = 0;
  virtual void close(Meeting& meeting) = 0;  // once complete
  // This rank waits for it no more. The others need not notice: what they hear through this rank they still do.
  void abandon(Meeting& meeting);

  // From now on this rank comes with a mark to what it hears of, until end_join() begins the next era.
  void join();
  void end_join();
  uint32_t era() const { return era_; }
  // Who gives named operations their tickets: a rank that hears of all of them, also where it comes with a mark.
  virtual int drawer() const = 0;
  std::function<uint64_t()> draw_ticket;  // on that rank

  // Takes what has come; true if there was anything. What is complete then: next_complete(), until it gives none.
  virtual bool poll() = 0;
  Meeting* next_complete();

  void leave(bool failed = false, uint64_t steps = 0);  // after so many steps of its optimizer
  int first_left() const { return first_left_; }        // of the others, as far as this rank has heard; -1: none has
  uint64_t first_left_after() const { return first_left_after_; }  // so many steps; 0: unknown, or none
  // One that has left because it failed, and what it had begun with others is lost; -1: none.
  int first_failed() const { return first_failed_; }
  virtual bool all_left() const = 0;  // this rank as well, and nothing is under way any more
  virtual bool busy() const = 0;      // something is under way that needs polling
  // This rank has come to something that it waits for no more, and that others hear of through it.
  virtual bool relays() const { return false; }

 protected:
  struct Subject {
    uint64_t key;
    uint32_t lane, topic;
    bool operator==(const Subject& o) const { return key == o.key && lane == o.lane && topic == o.topic; }
  };
  static Subject subject_of(const Note& n) { return {n.key, n.lane, n.topic}; }

  // Meetings by subject. Those that have ended are used again, with the memory of their payloads.
  template <class M>
  class Table {
   public:
    M& at(const Subject& subject) {
      const auto found = meetings_.find(subject);
      if (found != meetings_.end()) return *found->second;
      if (spare_.empty()) return *meetings_.emplace(subject, std::make_unique<M>()).first->second;
      spare_.back().key() = subject;
      const auto place = meetings_.insert(std::move(spare_.back())).position;
      spare_.pop_back();
      return *place->second;
    }
    void release(const Subject& subject) {
      auto node = meetings_.extract(subject);
      if (!node.empty() && spare_.size() < kSpare) spare_.push_back(std::move(node));
    }
    template <class Act>
    void for_each(const Act& act) {  // act(subject, meeting) may not add any
      for (auto& [subject, meeting] : meetings_) act(subject, *meeting);
    }

   private:
    static constexpr size_t kSpare = 64;
    struct Hash {
      size_t operator()(const Subject& s) const { return (s.key ^ s.lane << 8 ^ s.topic) * 0x9e3779b97f4a7c15ull; }
    };
    using Map = std::unordered_map<Subject, std::unique_ptr<M>, Hash>;
    Map meetings_;
    std::vector<typename Map::node_type> spare_;
  };

  void heard_of_leaving(int rank) {  // from a mark
    if (note_leaving(rank, false, 0)) mark_open();
  }
  void heard_of_leaving(const Note& note) {
    if (note_leaving(note)) mark_open();
  }
  bool note_leaving(const Note& note) {  // true: this rank comes with marks from now on
    return note_leaving(static_cast<int>(note.ticket), note.flags & Note::kPoison, note.signature);
  }
  Note tell_leaving(Topic topic) const;  // that a rank has left: one that has failed, if there is one; else the first
  void is_complete(Meeting& meeting) { complete_.push_back(&meeting); }
  void is_complete_no_more(Meeting& meeting);  // it is closed before next_complete() gave it
  // Whether this rank comes with a mark to what it hears of, by a note: to named operations, once somebody has left, or it
  // has joined itself.
  bool marks(const Note& note) const {
    return note.topic == named && (left_ || first_left_ >= 0 || is_silent_about(note));
  }
  bool is_silent_about(const Note& note) const {  // it has joined, and will not come otherwise
    return !(note.flags & Note::kAwaits) && (note.lane < era_ || (note.lane == era_ && joined_));
  }
  Note mark(const Subject& subject, bool draws = true) const;
  Note joined_mark(const Subject& subject) const;
  bool has_left() const { return left_; }
  int rank() const { return rank_; }

  virtual void is_abandoned(Meeting&) {}
  virtual void tell_of_leaving() = 0;  // this rank leaves: the others must hear of it
  virtual void tell_of_joining() {}    // to a rank that cannot tell otherwise
  virtual void mark_open() = 0;        // comes with the mark to all that it has heard of

 private:
  bool note_leaving(int rank, bool failed, uint64_t steps);

  const int rank_;
  std::deque<Meeting*> complete_;
  bool left_ = false, joined_ = false, failed_ = false;
  int first_left_ = -1, first_failed_ = -1;
  uint64_t steps_ = 0, first_left_after_ = 0;
  uint32_t era_ = 0;
};

}  // namespace ringdp
