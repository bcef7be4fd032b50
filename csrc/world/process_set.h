// A set of ranks that exchange: its communicators, its agreement, its lanes. Used by the engine's thread alone.
//
// A *lane* is a sequence of operations that all ranks start in the same order: lane 0 holds the named operations
// (ordered by the rounds), every plan opens one more for its buckets. A message's tag is the lane and the low bits of
// the sequence, so operations in flight at the same time never meet.
#pragma once

#include <bitset>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>

#include "agree/dissemination.h"
#include "agree/letters.h"
#include "agree/rounds.h"
#include "collectives/choice.h"
#include "collectives/levels.h"
#include "shared/counts.h"
#include "submit/names.h"
#include "transport/transport.h"

namespace ringdp {

struct Vote {
  std::vector<uint64_t> words;
  std::shared_ptr<class Handle> handle;
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
  std::unique_ptr<Dissemination> ballot;  // for the votes of this lane's steps
  std::deque<Vote> votes;                 // the first one is running
  uint64_t votes_begun = 0;
};

struct ProcessSet {
  ProcessSet(int id, std::unique_ptr<Transport> data_transport, std::unique_ptr<Transport> control_transport,
             Chooser chooser)
      : id(id),
        members(data_transport->size()),
        chooser(std::move(chooser)),
        data(std::move(data_transport)),
        control(std::move(control_transport)),
        rounds(data->rank(), members),
        wire(*control, kRoundsTag) {}

  int rank() const { return data->rank(); }
  int size() const { return members; }

  // All ranks share memory (or there is one alone): they agree by letters, and the rounds are not used.
  bool one_host() const { return letters && static_cast<int>(letters->members().size()) == size(); }
  int left_rank() const { return one_host() ? letters->first_left() : rounds.left_rank(); }  // -1: none
  bool closed() const { return one_host() ? left && letters->left() == size() - 1 : rounds.closed(); }

  // Sequences wrap in the tag after kTags operations.
  static constexpr int kRoundsTag = 0, kTags = Lane::kTags;
  static int tag(int lane, uint64_t sequence) { return lane * kTags + static_cast<int>(sequence % kTags); }
  static int vote_tag(int lane) { return kRoundsTag + 1 + lane; }
  // In a host an operation under way holds shared memory: fewer at a time are fast enough.
  uint64_t window() const { return one_host() || levels ? kWindowInHost : Lane::kWindow; }
  static constexpr uint64_t kWindowInHost = 8;
  int max_lane() const { return data->max_tag() / kTags - 1; }

  const int id, members;
  const Chooser chooser;  // of algorithms; of shared memory only where this is one_host()
  std::unique_ptr<Transport> data, control;
  Rounds rounds;
  Dissemination wire;                // carries the rounds
  std::unique_ptr<Letters> letters;  // with the ranks of this host; none where nothing is shared
  std::unique_ptr<Counts> counts;
  int with_memory = 0;           // operations that hold counts of progress, and perhaps an area
  std::optional<Levels> levels;  // where there are several hosts that share memory each
  std::map<int, Lane> lanes;
  int next_lane = 1;
  uint64_t unnamed = 0;                    // calls without a name so far
  std::bitset<kUnnamedSlots> slots_taken;  // by unnamed calls in flight
  uint64_t named = 0;                      // operations that were told by letter
  bool left = false;                       // this rank has told the others that it submits nothing more
};

}  // namespace ringdp
