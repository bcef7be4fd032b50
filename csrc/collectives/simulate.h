// Executes the schedules of all ranks of one collective in one thread, in a seeded random order of events, over
// elements that know what they are. It proves what schedule.h promises to whoever runs a schedule: each element of
// each rank is where it belongs and in every sum exactly once, and nobody waits for ever, whatever is slow.
//
// A move has up to three events, and anything else may happen between them:
//   post      all of `after` are done, and the moves before it on the same channel are posted: it owns its regions
//   read      (send) the region is read: the message is on its way; (signal) the others can see it
//   complete  the move is done: a receive, and a reduce, copy or finish, has written its region; an await has seen the
//             signals of all others of its host
// A run is *eager* (a send is read whether or not the receive is posted) or it is a *rendezvous* (only when it is); it
// may be *narrow* (one message under way on each channel, and awaits end one after the other, in the order of the list);
// and it keeps back a random kind of event, rank and share of all events for as long as there is anything else to do, and
// one event until there is nothing else at all.
// No event ever takes away another's chance to happen, so whether the schedules deadlock does not depend on the order:
// a narrow rendezvous run that ends proves that all of them do, and however few messages an executor keeps under way.
//
// Memory of other ranks. The ranks of a host reach each other's areas, and their outputs where these are shared. What
// orders the accesses of two ranks are signals and awaits (and messages) alone. All ranks have begun when a run begins,
// as whoever executes it must see to; a rank *ends* with its last move, whatever the others still do, and nobody may
// touch its memory from then on.
//
// Reported (ErrorKind::internal, naming rank and move): deadlock, messages without a counterpart or of another length,
// awaits of a signal that some rank of the host never comes to, signals that do not rise by one or do not name the one
// before, a region owned by two moves of which one writes, reading what was never written or is being received, writing
// to the input, memory out of bounds, out of reach, or of a rank that has ended, elements misplaced, added twice, missing,
// scaled or finished when they should not be, more moves in flight than the window allows.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "collectives/schedule.h"

namespace ringdp::simulate {

// What one element of memory holds. Both `ranks` and `index` of two operands are checked before they are added.
struct Value {
  uint64_t ranks = 0;      // bit r: the contribution of rank r is in it; 0: never written, or being received
  uint32_t index = 0;      // its place in the tensor that the collective is about
  uint32_t sum = 0;        // how it was added up (see Sums)
  bool prescaled = false;  // by a copy
  bool finished = false;
  bool operator==(const Value& o) const {
    return ranks == o.ranks && index == o.index && prescaled == o.prescaled && finished == o.finished;
  }
};

// The order of addition, as numbered pairs: the same number is the same tree of additions.
class Sums {
 public:
  static uint32_t leaf(int rank) { return static_cast<uint32_t>(rank) + 1; }
  uint32_t add(uint32_t from, uint32_t with);
  std::string text(uint32_t sum) const;  // like (0+(3+(2+1))), the numbers being ranks

 private:
  static constexpr uint32_t kFirst = 65;  // numbers below are ranks
  std::map<std::pair<uint32_t, uint32_t>, uint32_t> numbers_;
  std::vector<std::pair<uint32_t, uint32_t>> pairs_;
};

// What the collective starts from and must end with, by rank.
struct Problem {
  bool in_place = false;                     // the output lies where the input lies
  std::vector<std::vector<Value>> inputs;    // inputs[r][i]: element i of rank r's input
  std::vector<std::vector<Value>> expected;  // of the output; without ranks: anything
  std::vector<int> host_of;                  // whose ranks share memory; empty: all of them
  bool outputs_are_shared = false;           // the outputs too, not the areas alone
  uint64_t receive_window = 0;               // receive j of a rank is posted when receive j - window is done; 0: any
  uint64_t send_window = 0;
};

// At most 64 ranks. The schedules are checked as far as that needs no run when a Simulation is made.
class Simulation {
 public:
  Simulation(std::vector<Schedule> schedules, Problem problem);
  ~Simulation();
  void run(uint64_t seed);
  std::vector<std::string> sums(int rank, uint64_t seed);  // one run; how each element of rank's output was added up

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace ringdp::simulate
