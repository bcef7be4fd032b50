// A set of ranks that exchange: its communicators, its agreement, its lanes. Used by the engine's thread alone.
//
// A *lane* is a sequence of operations that all ranks start in the same order: lane 0 holds the named operations
// (ordered by the rounds), every plan opens one more for its buckets. A message's tag is the lane and the low bits of
// the sequence, so operations in flight at the same time never meet.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>

#include "agree/dissemination.h"
#include "agree/rounds.h"
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
  bool may_start(uint64_t sequence) const { return started.empty() || sequence < *started.begin() + kWindow; }
  static constexpr int kTags = 256, kWindow = kTags / 2;
  std::unique_ptr<Dissemination> ballot;  // for the votes of this lane's steps
  std::deque<Vote> votes;                 // the first one is running
};

struct ProcessSet {
  ProcessSet(int id, std::unique_ptr<Transport> data_transport, std::unique_ptr<Transport> control_transport)
      : id(id),
        data(std::move(data_transport)),
        control(std::move(control_transport)),
        rounds(data->rank(), data->size()),
        wire(*control, kRoundsTag) {}

  int rank() const { return data->rank(); }
  int size() const { return data->size(); }

  // Sequences wrap in the tag after kTags operations.
  static constexpr int kRoundsTag = 0, kTags = Lane::kTags;
  static int tag(int lane, uint64_t sequence) { return lane * kTags + static_cast<int>(sequence % kTags); }
  static int vote_tag(int lane) { return kRoundsTag + 1 + lane; }
  int max_lane() const { return data->max_tag() / kTags - 1; }

  const int id;
  std::unique_ptr<Transport> data, control;
  Rounds rounds;
  Dissemination wire;  // carries the rounds
  std::map<int, Lane> lanes;
  int next_lane = 1;
  uint64_t unnamed = 0;  // calls without a name so far
  bool left = false;     // this rank has told the others that it submits nothing more
};

}  // namespace ringdp
