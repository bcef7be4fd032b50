// Every state that the protocol of rounds.h can come to, for a few ranks and names: a proof by exhaustion, for the
// tests.
//
// The ranks are real `Rounds`; the exploration stands for everything around them. From each state it tries every event
// that could come next on any rank:
//
//   submit    a name that is not in flight on this rank, in any order
//   enter     the current instance, if the rank wants to, or if it has heard that another rank has entered it
//   complete  an instance that all ranks have entered; the others may be in the next one by then, but no further
//   leave     between rounds, where the scenario allows it
//
// and goes on from the state it leads to, unless it has been there before. A message under way needs no event of its
// own: it is a rank that could enter or complete, and has not yet.
//
// Orders that differ only in which of two ranks did its own thing first lead to the same state. So where a rank can
// enter or complete, only that rank's events are tried: they are a persistent set (Godefroid, "Partial-Order Methods
// for the Verification of Concurrent Systems", LNCS 1032, 1996, chapter 4). For each of them touches this rank's state
// alone, and nothing that the others do before can change what it does or add another to them; a rank that waits to
// hear of others, or for others to enter, is no such rank. No cycle can starve the others, since each event uses up
// something. A scenario with `every_order` tries all events from each state instead.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace ringdp::explore {

// A rule of the protocol taken out, to see that the exploration notices.
enum class Broken {
  nothing,
  forgets_changes_inside,  // a name that is submitted inside an instance does not make the rank enter again
  submission_order,        // what is ready runs in the order in which it was submitted here
  keeps_reused_id,         // a pending name keeps its id though the id was given to another name
  never_compares,          // a rank takes its signature for agreed
  leaves_in_silence,       // a rank leaves without entering a round
};

struct Scenario {
  int ranks = 3;
  int names = 3;
  int times = 1;  // that each rank submits each name, again after it has ended
  uint64_t names_kept = 1024, names_at_once = 32;
  std::vector<std::pair<int, int>> different{};  // (rank, name): has another signature there
  std::vector<int> leave_early{};  // these ranks may leave at any time, the others when nothing is left to do
  bool hears_neighbour_only =
      false;  // as over the wire: a rank hears first from the rank before it; else from any rank
  bool every_order = false;
  Broken broken = Broken::nothing;
};

struct Outcome {
  uint64_t states = 0, ends = 0;
  uint64_t runs = 0, mismatches = 0, peers_left = 0;  // decisions seen on the way: what the scenario has reached at all
  std::string violation;                              // "" or what is wrong, and
  std::vector<std::string> path;                      // the events that lead there
};

// Proves for every order of events: the ranks come to the same decisions in the same order and keep the same table;
// every name ends exactly once for each submission, by `run`, by `mismatch` where signatures differ, by `peer_left`
// only where a rank leaves; where nothing more can happen, everything has been submitted and has ended, or every rank
// has left.
Outcome explore(const Scenario& scenario, uint64_t most_states);

}  // namespace ringdp::explore
