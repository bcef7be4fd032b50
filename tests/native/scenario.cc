#include "scenario.h"

#include <algorithm>
#include <sstream>

namespace ringdp::tests {

namespace {

constexpr double kPatience = 300, kShort = 0.3;  // seconds of RINGDP_TIMEOUT

const std::vector<Dtype> kTypes = {Dtype::float32, Dtype::float64, Dtype::bfloat16,
                                   Dtype::float16, Dtype::int32,   Dtype::uint8};
const std::vector<OpKind> kKinds = {OpKind::allreduce, OpKind::allreduce,     OpKind::allreduce, OpKind::allgather,
                                    OpKind::broadcast, OpKind::reducescatter, OpKind::alltoall,  OpKind::barrier};
const std::vector<ReduceOp> kOps = {ReduceOp::sum, ReduceOp::sum, ReduceOp::average,
                                    ReduceOp::min, ReduceOp::max, ReduceOp::product};

// Mostly a few elements; now and then many segments.
uint64_t some_count(Random& random) {
  return random.one_in(4) ? 100 + random.below(3000) : random.one_in(8) ? 0 : 1 + random.below(40);
}

bool reduces(OpKind kind) { return kind == OpKind::allreduce || kind == OpKind::reducescatter; }

}  // namespace

const char* name_of(Fault fault) {
  constexpr const char* names[] = {"none",          "a rank differs",         "ranks join",
                                   "a rank leaves", "a rank does not submit", "a rank stops"};
  return names[static_cast<int>(fault)];
}

Scenario::Scenario(uint64_t seed) : seed(seed) {
  Random random(seed);
  choose_world(random);
  choose_fault(random);
  Task plan;
  plan.kind = OpKind::open_plan;
  plan.name = "plan";
  plan.ranks = sets[0];
  tasks.push_back(plan);
  scripts.resize(static_cast<size_t>(ranks));
  add_to_scripts(random, 0, true);
  const int rounds = 1 + static_cast<int>(random.below(3));
  for (int round = 0; round < rounds; ++round) add_round(random, round);
  if (fault == Fault::leaves) cut_off(random);
}

void Scenario::choose_world(Random& random) {
  ranks = 2 + static_cast<int>(random.below(4));
  const uint64_t on_hosts = random.below(4);  // none share, one host, several, several with as many ranks each
  for (int r = 0; r < ranks && on_hosts > 0; ++r)
    hosts.push_back(on_hosts == 1 ? 0 : on_hosts == 2 ? static_cast<int>(random.below(2)) : r % 2);
  std::vector<int> all;
  for (int r = 0; r < ranks; ++r) all.push_back(r);
  sets.push_back(all);
  for (uint64_t more = random.below(3); more > 0; --more) {
    std::vector<int> some = all;
    random.shuffle(some);
    some.resize(1 + random.below(static_cast<uint64_t>(ranks)));
    std::sort(some.begin(), some.end());
    sets.push_back(some);
  }
  delays = random.one_in(3) ? 0 : 1 + random.below(1000000);
  options.timeout = kPatience;
  options.idle_looks = 2000;
  options.spin_us = 0;
  options.segment_bytes = random.of<uint64_t>({8, 64, 4096});
  options.shared_segment_bytes = random.of<uint64_t>({64, 4096});
  options.letter_bytes = random.of<uint64_t>({0, 64, 16384});
  options.depth = random.of<int64_t>({1, 2, 16});
  options.algorithm = random.of<std::string>(
      {"auto", "auto", "ring", "recursive_doubling", "halving_doubling", "double_tree", "two_level", "shared_memory"});
  options.checksum = random.one_in(2);
}

// The last two wait for a deadline.
void Scenario::choose_fault(Random& random) {
  const uint64_t drawn = random.below(100);
  fault = drawn < 36   ? Fault::none
          : drawn < 62 ? Fault::mismatch
          : drawn < 77 ? Fault::joins
          : drawn < 92 ? Fault::leaves
          : drawn < 96 ? Fault::missing
                       : Fault::stops;
  culprit = static_cast<int>(random.below(static_cast<uint64_t>(ranks)));
  stops_after = random.below(400);
  if (fault == Fault::missing || fault == Fault::stops) options.timeout = kShort;
}

Task Scenario::named(Random& random, const std::string& name) {
  Task task;
  task.kind = random.of(kKinds);
  task.name = name;
  task.set = static_cast<int>(random.below(sets.size()));
  task.dtype = random.of(kTypes);
  if (reduces(task.kind)) task.op = random.of(kOps);
  if (reduces(task.kind) && task.op == ReduceOp::sum && is_float(task.dtype) && random.one_in(4))
    task.prescale = 0.5, task.postscale = 4;
  task.count = task.kind == OpKind::barrier ? 0 : some_count(random);
  task.ranks = sets[static_cast<size_t>(task.set)];
  if (task.kind == OpKind::broadcast) task.root = static_cast<int>(random.below(task.ranks.size()));
  return task;
}

// Names come again when all that had them have ended, because the ranks have waited; at a deadline they do not end.
void Scenario::add_round(Random& random, int round) {
  const size_t first = tasks.size();
  // Where a rank has left in the middle of a step, the others wait for two seconds before they give it up.
  const uint64_t seldom = fault == Fault::leaves ? 12 : 2;
  const bool has_step = fault != Fault::joins && random.one_in(seldom);
  // A step's vote is heard before the next one begins, as by optimizers.
  const bool waits = fault == Fault::joins || has_step || random.one_in(2);
  const std::string suffix = "." + std::to_string(unwaited_);
  unwaited_ = waits && options.timeout > kShort ? 0 : unwaited_ + 1;
  const int count = 1 + static_cast<int>(random.below(8));
  for (int i = 0; i < count; ++i) {
    const bool unnamed = fault != Fault::missing && random.one_in(5);
    tasks.push_back(named(random, unnamed ? "" : "x" + std::to_string(i) + suffix));
  }
  if (random.one_in(3)) {
    const int set = static_cast<int>(random.below(sets.size()));
    for (uint64_t i = 0; i < 2 + random.below(3); ++i) {
      Task task = named(random, "group." + std::to_string(i) + suffix);
      task.kind = OpKind::allreduce;
      task.root = -1;
      task.count = std::max<uint64_t>(task.count, 1);
      task.set = set;
      task.ranks = sets[static_cast<size_t>(set)];
      task.group = round;
      tasks.push_back(task);
    }
  }
  if (has_step) add_step(random, round);
  add_faults(random, first);
  if (fault == Fault::joins) {
    Task join;
    join.kind = OpKind::join;
    join.name = "join";
    join.ranks = sets[0];
    tasks.push_back(join);
  }
  add_to_scripts(random, first, waits);
}

void Scenario::add_step(Random& random, int round) {
  for (uint32_t bucket = 0, buckets = 1 + static_cast<uint32_t>(random.below(4)); bucket <= buckets; ++bucket) {
    Task task;
    task.step = round;
    task.bucket = bucket;
    task.is_vote = bucket == buckets;
    task.ranks = sets[0];
    task.count = 1 + some_count(random);
    task.dtype = random.of(kTypes);
    task.op = random.one_in(2) ? ReduceOp::average : ReduceOp::sum;
    tasks.push_back(task);
  }
}

void Scenario::add_faults(Random& random, size_t first) {
  // Ranks that join have come to so many of the tasks of set 0, in their order.
  std::vector<uint64_t> amounts;
  for (int r = 0; r < ranks; ++r) amounts.push_back(random.below(tasks.size() - first + 1));
  uint64_t number = 0;
  for (size_t t = first; t < tasks.size(); ++t) {
    Task& task = tasks[t];
    if (fault == Fault::mismatch && task.ranks.size() > 1 && random.one_in(4)) {
      task.culprit = random.of(task.ranks);
      task.differs = static_cast<Differs>(random.below(5));
    }
    if (fault == Fault::missing && !task.is_planned() && task.group < 0 && random.one_in(2)) {
      const auto gone = std::find(task.ranks.begin(), task.ranks.end(), culprit);
      if (gone != task.ranks.end()) task.ranks.erase(gone);
    }
    if (fault == Fault::joins && task.set == 0) {
      const uint64_t mine = task.group < 0 ? number++ : number;  // those of a group go together
      task.ranks.clear();
      for (int r = 0; r < ranks; ++r)
        if (mine < amounts[static_cast<size_t>(r)]) task.ranks.push_back(r);
    }
  }
}

// Named tasks in any order; unnamed ones of a set, and those of the plan, in theirs, in between; a join last of all.
std::vector<Action> Scenario::in_order(Random& random, size_t first, int rank) const {
  std::vector<Action> actions;
  std::vector<std::pair<int, std::vector<Action>>> sequences;  // by set; -1: the plan
  const auto keeps_order = [](const Task& task) { return task.is_planned() || task.name.empty(); };
  std::vector<int> order;
  for (size_t t = first; t < tasks.size(); ++t) {
    const Task& task = tasks[t];
    const int index = static_cast<int>(t);
    if (!submits(index, rank) || task.kind == OpKind::join) continue;
    const bool joins_last = task.group >= 0 && t > first && tasks[t - 1].group == task.group;
    if (joins_last && !actions.empty())
      actions.back().tasks.push_back(index);
    else
      actions.push_back({Action::submit, {index}});
  }
  random.shuffle(actions);
  for (int set = -1; set < static_cast<int>(sets.size()); ++set) {
    std::vector<size_t> places;
    std::vector<int> of_set;
    for (size_t a = 0; a < actions.size(); ++a) {
      const int index = actions[a].tasks[0];
      const Task& task = tasks[static_cast<size_t>(index)];
      if (!keeps_order(task) || (task.is_planned() ? -1 : task.set) != set) continue;
      places.push_back(a);
      of_set.push_back(index);
    }
    std::sort(of_set.begin(), of_set.end());
    for (size_t i = 0; i < places.size(); ++i) actions[places[i]].tasks = {of_set[i]};
  }
  if (!tasks.empty() && tasks.back().kind == OpKind::join)
    actions.push_back({Action::submit, {static_cast<int>(tasks.size()) - 1}});
  return actions;
}

void Scenario::add_to_scripts(Random& random, size_t first, bool waits) {
  for (int rank = 0; rank < ranks; ++rank) {
    std::vector<Action>& script = scripts[static_cast<size_t>(rank)];
    for (Action& action : in_order(random, first, rank)) script.push_back(std::move(action));
    if (waits) script.push_back({Action::await, {}});
  }
}

// The culprit leaves somewhere in its script, and what follows it never submits.
void Scenario::cut_off(Random& random) {
  std::vector<Action>& script = scripts[static_cast<size_t>(culprit)];
  const size_t at = 2 + random.below(script.size() - 1);  // the plan is open by then
  for (size_t a = at; a < script.size(); ++a)
    for (const int t : script[a].tasks) {
      std::vector<int>& still = tasks[static_cast<size_t>(t)].ranks;
      still.erase(std::remove(still.begin(), still.end(), culprit), still.end());
    }
  script.resize(std::min(at, script.size()));
  script.push_back({Action::leave, {}});
}

bool Scenario::submits(int task, int rank) const {
  const std::vector<int>& some = tasks[static_cast<size_t>(task)].ranks;
  return std::find(some.begin(), some.end(), rank) != some.end();
}

bool Scenario::is_member(int task, int rank) const {
  const std::vector<int>& all = sets[static_cast<size_t>(tasks[static_cast<size_t>(task)].set)];
  return std::find(all.begin(), all.end(), rank) != all.end();
}

int Scenario::place(int task, int rank) const {
  const std::vector<int>& all = sets[static_cast<size_t>(tasks[static_cast<size_t>(task)].set)];
  return static_cast<int>(std::find(all.begin(), all.end(), rank) - all.begin());
}

std::string Scenario::description() const {
  std::ostringstream out;
  out << ranks << " ranks";
  if (!hosts.empty()) out << " on hosts";
  for (const int host : hosts) out << " " << host;
  out << ", algorithm " << options.algorithm << ", segments of " << options.segment_bytes << " bytes, letters of "
      << options.letter_bytes << (options.checksum ? ", with checksums" : "") << ", fault: " << name_of(fault);
  if (fault == Fault::leaves || fault == Fault::missing || fault == Fault::stops) out << " (rank " << culprit << ")";
  return out.str();
}

}  // namespace ringdp::tests
