// What a seed makes of a few ranks: where they are, what each submits and in which order, and what goes wrong.
//
// A scenario is a list of tasks, each the same thing on all ranks of a process set but for a rank that differs, and a
// script for each rank: rounds, in each of which it submits the round's tasks in an order of its own. It waits for
// nothing within a round, so that whatever the orders are, every task has all its ranks in the end: but for the fault.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "base/options.h"
#include "submit/submission.h"

namespace ringdp::tests {

class Random {
 public:
  explicit Random(uint64_t seed) : numbers_(seed) {}
  uint64_t below(uint64_t end) { return numbers_() % end; }
  bool one_in(uint64_t n) { return below(n) == 0; }
  template <class T>
  const T& of(const std::vector<T>& some) {
    return some[below(some.size())];
  }
  template <class T>
  void shuffle(std::vector<T>& some) {
    for (size_t i = some.size(); i > 1; --i) std::swap(some[i - 1], some[below(i)]);
  }

 private:
  std::mt19937_64 numbers_;
};

enum class Fault { none, mismatch, joins, leaves, missing, stops };
const char* name_of(Fault fault);

enum class Differs { count, dtype, op, scale, kind };

struct Task {
  OpKind kind = OpKind::allreduce;
  std::string name;  // "": unnamed
  int set = 0;
  Dtype dtype = Dtype::float32;
  ReduceOp op = ReduceOp::sum;
  double prescale = 1, postscale = 1;
  int root = -1;       // of the set
  uint64_t count = 0;  // elements; all-gather and all-to-all: see rows_of()
  int group = -1;      // those of the same number are submitted together
  int step = -1;       // of the plan: a bucket of it, or its vote
  bool is_vote = false;
  uint32_t bucket = 0;
  std::vector<int> ranks;  // of the job, that submit it
  int culprit = -1;        // who submits something else
  Differs differs = Differs::count;

  bool is_planned() const { return step >= 0; }
};

struct Action {
  enum Kind { submit, await, leave } kind;
  std::vector<int> tasks;  // several: a group
};

struct Scenario {
  explicit Scenario(uint64_t seed);
  std::string description() const;
  bool submits(int task, int rank) const;
  bool is_member(int task, int rank) const;
  int place(int task, int rank) const;  // of a rank of the job in the task's set

  const uint64_t seed;
  int ranks = 0;
  std::vector<int> hosts;  // by rank; empty: nothing is shared
  Options options;
  uint64_t delays = 0;  // see transport/local.h
  Fault fault = Fault::none;
  int culprit = 0;                     // the rank that is at fault
  uint64_t stops_after = 0;            // turns of the culprit
  std::vector<std::vector<int>> sets;  // ranks of the job; the first is all of them
  std::vector<Task> tasks;             // the first opens the plan
  std::vector<std::vector<Action>> scripts;

 private:
  void choose_world(Random& random);
  void choose_fault(Random& random);
  Task named(Random& random, const std::string& name);
  void add_round(Random& random, int round);
  void add_step(Random& random, int round);
  void add_faults(Random& random, size_t first);
  void add_to_scripts(Random& random, size_t first, bool waits);
  std::vector<Action> in_order(Random& random, size_t first, int rank) const;
  void cut_off(Random& random);

  int unwaited_ = 0;  // rounds since the ranks have waited
};

}  // namespace ringdp::tests
