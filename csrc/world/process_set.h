// A set of ranks that exchange: its communicators, its agreement, its lanes. Used by the engine's thread alone.
//
// A *lane* is a sequence of operations: lane 0 holds the named operations, which each rank starts as soon as all have come
// to them (agree/meetings.h), every plan opens one more for its buckets, which all ranks start in the same order. A
// message's tag is the lane and the low bits of the sequence, so operations in flight at the same time never meet.
#pragma once

#include <algorithm>
#include <bitset>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>

#include "agree/doubling.h"
#include "agree/letters.h"
#include "collectives/choice.h"
#include "collectives/levels.h"
#include "shared/counts.h"
#include "submit/names.h"
#include "transport/transport.h"
#include "world/membership.h"

namespace ringdp {

struct Vote {
  std::vector<uint64_t> words;
  std::shared_ptr<class Handle> handle;
  uint64_t behind = 0;  // so many operations of the lane were handed in before it
};

struct Lane {
  uint64_t next = 0;           // sequence of the next operation
  bool broken = false;         // an operation of this plan has failed, on every rank: nothing more runs in the lane
  std::set<uint64_t> started;  // sequences of the operations in flight

  // Operations in flight lie within half of the tags: no two of them have the same tag, on this rank or, since a rank
  // is at most one window ahead of another, on a neighbour.
  bool may_start(uint64_t sequence, uint64_t window) const {
    return started.empty() || sequence < *started.begin() + window;
  }
  static constexpr int kTags = 256, kWindow = kTags / 2;
  std::deque<Vote> votes;  // of this lane's steps; the first one is running
  uint64_t votes_begun = 0;
};

// The places of named operations in the order of a process set: drawn by one rank (Meetings::drawer), told to the others with its note.
// A plan's lane is drawn with it, so that all ranks give it the same number.
class Tickets {
 public:
  explicit Tickets(int tags) : taken_(static_cast<size_t>(tags), false) {}

  // No two operations that have not ended here have the same tag; none if there are as many as tags.
  std::optional<uint64_t> draw(bool opens_lane) {
    for (size_t tries = 0; taken_[next_ % taken_.size()]; ++next_)
      if (++tries > taken_.size()) return std::nullopt;
    taken_[next_ % taken_.size()] = true;
    return next_++ | (opens_lane ? next_lane_++ : 0) << kLaneAt;
  }
  void give_back(uint64_t sequence) { taken_[sequence % taken_.size()] = false; }

  static uint64_t sequence_of(uint64_t ticket) { return ticket & ((uint64_t{1} << kLaneAt) - 1); }
  static int lane_of(uint64_t ticket) { return static_cast<int>(ticket >> kLaneAt); }

 private:
  static constexpr int kLaneAt = 40;
  std::vector<bool> taken_;
  uint64_t next_ = 0, next_lane_ = 1;
};

struct ProcessSet {
  ProcessSet(int id, Membership made_of, Chooser chooser, bool checks_messages, Doubling::Merge merge);
  ~ProcessSet();

  int rank() const { return data->rank(); }
  int size() const { return members; }
  bool draws_tickets() const { return rank() == (one_host() ? letters->drawer() : doubling.drawer()); }
  int name() const { return ranks[static_cast<size_t>(rank())]; }  // what users are told of this rank: that of the job

  // Where GPU tensors go in two levels, each is exchanged in a set of its own, which no caller knows. All ranks of a level
  // give it the same number, as they do the set that it belongs to.
  bool is_level() const { return id < 0; }
  static int in_host_of(int id) { return -1 - 2 * id; }
  static int between_hosts_of(int id) { return -2 - 2 * id; }

  // All ranks share memory (or there is one alone): they meet by letters. Those of several hosts send messages.
  bool one_host() const { return letters && static_cast<int>(letters->members().size()) == size(); }
  bool reduces_in_shared_memory() const { return one_host() && size() > 1 && !chooser.forces_messages(); }
  Meetings& meetings() { return one_host() ? static_cast<Meetings&>(*letters) : doubling; }
  std::string has_left(int member) const;  // in words
  std::string because() const;             // what a failure may follow from: that some rank has left
  const Meetings& meetings() const { return one_host() ? static_cast<const Meetings&>(*letters) : doubling; }

  // Tags: those of the plans' lanes from below, kTags each; those of named operations, of which more may wait for other
  // ranks, above.
  static constexpr int kMeetingsTag = 0;  // of the control communicator: its only one
  static constexpr int kMostNamedTags = 1 << 20;
  int named_tags() const { return std::min(data->max_tag() / 2, kMostNamedTags); }
  int max_lane() const { return (data->max_tag() - named_tags()) / Lane::kTags; }
  int tag(int lane, uint64_t sequence) const {
    if (lane == 0) return data->max_tag() - static_cast<int>(sequence % static_cast<uint64_t>(named_tags()));
    return (lane - 1) * Lane::kTags + static_cast<int>(sequence % Lane::kTags);
  }

  // In a host an operation under way holds shared memory: fewer at a time are fast enough.
  uint64_t window() const { return one_host() || levels ? kWindowInHost : Lane::kWindow; }
  static constexpr uint64_t kWindowInHost = 8;

  const int id;
  const std::vector<int> ranks;  // of the job, in order
  const int members;
  const Chooser chooser;       // of algorithms; of shared memory only where this is one_host()
  const bool checks_messages;  // what is sent carries checksums
  std::unique_ptr<Transport> data, control;
  Doubling doubling;
  std::unique_ptr<Letters> letters;  // with the ranks of this host; none where nothing is shared
  std::unique_ptr<Counts> counts;
  int with_memory = 0;           // operations that hold counts of progress, and perhaps an area
  std::optional<Levels> levels;  // where there are several hosts that share memory each
  std::map<int, Lane> lanes;
  std::unique_ptr<struct Gpus> gpus;                        // since the first tensor on one
  ProcessSet *in_host = nullptr, *between_hosts = nullptr;  // its levels, if it has any: both or none
  Tickets tickets;                                          // of the rank that draws them
  uint64_t unnamed = 0;                                     // calls without a name so far
  std::bitset<kUnnamedSlots> slots_taken;                   // by unnamed calls in flight
  uint64_t since_join = 0;                                  // named operations that this rank has submitted
  bool divides_by_active = false;                           // while this rank has joined: see Submission
  bool left = false;  // this rank has told the others that it submits nothing more

 private:
  void join_neighbours(const Neighbourhood& neighbourhood);
};

// Where its ranks are, with what they share.
Placement placement_of(const Membership& membership);

// Of ranks on the hosts of these numbers.
Placement placement_on(const std::vector<int>& hosts);

}  // namespace ringdp
