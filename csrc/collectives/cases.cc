#include "collectives/cases.h"

#include "base/check.h"
#include "collectives/halves.h"

namespace ringdp::simulate {
namespace {

uint64_t sum_of(const std::vector<uint64_t>& counts, size_t begin, size_t end) {
  uint64_t sum = 0;
  for (size_t i = begin; i < end; ++i) sum += counts[i];
  return sum;
}

uint64_t everyone(int ranks) { return ranks == 64 ? ~uint64_t{0} : (uint64_t{1} << ranks) - 1; }

// Elements [begin, begin + count) of the tensor, as a value of these ranks.
void append(std::vector<Value>& to, uint64_t begin, uint64_t count, uint64_t ranks, Arithmetic done = {}) {
  to.reserve(to.size() + count);
  for (uint64_t i = begin; i < begin + count; ++i)
    to.push_back({ranks, static_cast<uint32_t>(i), 0, done.prescale, done.finish});
}

void append_input(std::vector<Value>& to, uint64_t count, int rank) {
  append(to, 0, count, uint64_t{1} << rank);
  for (Value& v : to) v.sum = Sums::leaf(rank);
}

// What rank r sends to each, and what each sends to rank r.
std::vector<uint64_t> sent_by(const Case& c, int r) {
  return {c.counts.begin() + r * c.ranks, c.counts.begin() + (r + 1) * c.ranks};
}
std::vector<uint64_t> received_by(const Case& c, int r) {
  std::vector<uint64_t> counts;
  for (int from = 0; from < c.ranks; ++from) counts.push_back(c.counts[from * c.ranks + r]);
  return counts;
}

// An all-gather begins with what a reduce-scatter ends with.
void complete_own(std::vector<Value>& values, Chunk own, uint64_t ranks) {
  for (uint64_t i = own.begin; i < own.end; ++i) values[i].ranks = ranks;
}

std::vector<Value> input_of(const Case& c, int r) {
  std::vector<Value> input;
  switch (c.collective) {
    case Collective::allreduce:
      append_input(input, c.counts[0], r);
      if (c.half == Half::all_gather) complete_own(input, own_chunk(c, r), everyone(c.ranks));
      break;
    case Collective::reduce_scatter:
      append_input(input, sum_of(c.counts, 0, c.counts.size()), r);
      break;
    case Collective::allgather:
      append_input(input, c.counts[r], r);
      break;
    case Collective::broadcast:
      if (r == c.root) append_input(input, c.counts[0], r);
      break;
    case Collective::alltoall:
      append_input(input, sum_of(c.counts, r * c.ranks, (r + 1) * c.ranks), r);
      break;
  }
  return input;
}

// What a reduce-scatter leaves beside the own chunk may be anything.
void leave_open(std::vector<Value>& values, Chunk but) {
  for (uint64_t i = 0; i < values.size(); ++i)
    if (i < but.begin || i >= but.end) values[i].ranks = 0;
}

std::vector<Value> expected_of(const Case& c, int r) {
  std::vector<Value> output;
  switch (c.collective) {
    case Collective::allreduce:
      append(output, 0, c.counts[0], everyone(c.ranks), c.arithmetic);
      if (c.half == Half::reduce_scatter) leave_open(output, own_chunk(c, r));
      break;
    case Collective::reduce_scatter:
      append(output, sum_of(c.counts, 0, r), c.counts[r], everyone(c.ranks), c.arithmetic);
      break;
    case Collective::allgather:
      for (int from = 0; from < c.ranks; ++from) append(output, 0, c.counts[from], uint64_t{1} << from);
      break;
    case Collective::broadcast:
      append(output, 0, c.counts[0], uint64_t{1} << c.root);
      break;
    case Collective::alltoall:
      for (int from = 0; from < c.ranks; ++from) {
        const size_t row = static_cast<size_t>(from) * c.ranks;
        append(output, sum_of(c.counts, row, row + r), c.counts[row + r], uint64_t{1} << from);
      }
      break;
  }
  return output;
}

void check_shape(const Case& c) {
  size_t counts = 1;
  if (c.collective == Collective::reduce_scatter || c.collective == Collective::allgather) counts = c.ranks;
  if (c.collective == Collective::alltoall) counts = static_cast<size_t>(c.ranks) * c.ranks;
  if (c.ranks < 1 || c.counts.size() != counts) fail(ErrorKind::usage, describe(c), ": needs ", counts, " counts");
  if (!c.host_of.empty() && c.host_of.size() != static_cast<size_t>(c.ranks))
    fail(ErrorKind::usage, describe(c), ": needs a host for each rank");
  if (c.sharing != Sharing::none && c.collective != Collective::allreduce)
    fail(ErrorKind::usage, describe(c), ": only all-reduce has schedules of shared memory");
  if (only_in_place(c.sharing) && !c.in_place) fail(ErrorKind::usage, describe(c), ": direct means in place");
  if (c.half == Half::both) return;
  if (c.collective != Collective::allreduce || !c.in_place ||
      (c.sharing == Sharing::none && !has_halves(c.algorithm, c.ranks)))
    fail(ErrorKind::usage, describe(c), ": no all-reduce in place that has halves");
  if (c.half == Half::all_gather && (c.arithmetic.prescale || c.arithmetic.finish))
    fail(ErrorKind::usage, describe(c), ": the second half has no arithmetic");
}

// In turn, so that the hosts of a mixed case differ.
Schedule two_level_of(const Case& c, int r) {
  const std::optional<Levels> levels = levels_of(c.host_of, r);
  if (!levels) fail(ErrorKind::usage, describe(c), ": needs several hosts with as many ranks each, and more than one");
  Sharing way = c.sharing;
  if (way == Sharing::two_level_mixed) {
    const std::vector<Sharing> ways = {Sharing::two_level_staged, Sharing::two_level_messages,
                                       Sharing::two_level_direct};
    way = ways[static_cast<size_t>(levels->host) % (c.in_place ? 3 : 2)];
  }
  if (way == Sharing::two_level_direct) return two_level_direct(*levels, c.counts[0], c.pipeline, c.arithmetic, c.half);
  if (way == Sharing::two_level_staged) return two_level_staged(*levels, c.counts[0], c.pipeline, c.arithmetic, c.half);
  return two_level_messages(*levels, c.counts[0], c.pipeline, c.arithmetic, c.half);
}

Schedule allreduce_of(const Case& c, int r) {
  switch (c.sharing) {
    case Sharing::none:
      if (c.half != Half::both) return half_of(c.algorithm, c.half, c.ranks, r, c.counts[0], c.pipeline, c.arithmetic);
      return row_of(c.algorithm).schedule(c.ranks, r, c.counts[0], c.pipeline, c.arithmetic, c.in_place);
    case Sharing::direct:
      return shared_allreduce_direct(c.ranks, r, c.counts[0], c.pipeline, c.arithmetic, c.half);
    case Sharing::staged:
      return shared_allreduce_staged(c.ranks, r, c.counts[0], c.pipeline, c.arithmetic, c.half);
    default:
      return two_level_of(c, r);
  }
}

}  // namespace

Chunk own_chunk(const Case& c, int rank) {
  const bool messages = c.sharing == Sharing::none, two_level = in_two_levels(c.sharing);
  const Algorithm algorithm = two_level ? Algorithm::two_level : messages ? c.algorithm : Algorithm::shared_memory;
  return ringdp::own_chunk(algorithm, levels_of(c.host_of, rank), c.ranks, rank, c.counts[0]);
}

std::string describe(const Case& c) {
  constexpr const char* names[] = {"allreduce", "reduce_scatter", "allgather", "broadcast", "alltoall"};
  std::ostringstream text;
  if (c.half != Half::both) text << (c.half == Half::reduce_scatter ? "first" : "second") << " half of ";
  text << names[static_cast<int>(c.collective)];
  if (c.sharing != Sharing::none)
    text << " in shared memory, " << name_of(c.sharing);
  else if (c.collective == Collective::allreduce)
    text << " by " << name_of(c.algorithm);
  text << " on " << c.ranks << " ranks, ";
  for (size_t r = 0; r < c.host_of.size(); ++r) text << (r ? " " : "hosts ") << c.host_of[r];
  text << (c.host_of.empty() ? "counts" : ", counts");
  for (uint64_t n : c.counts) text << " " << n;
  text << ", segment " << c.pipeline.segment << ", depth " << c.pipeline.depth << ", root " << c.root
       << (c.arithmetic.prescale ? ", prescale" : "") << (c.arithmetic.finish ? ", finish" : "")
       << (c.in_place ? ", in place" : "");
  return text.str();
}

const char* name_of(Sharing sharing) {
  constexpr const char* names[] = {
      "none", "direct", "staged", "two_level_direct", "two_level_staged", "two_level_messages", "two_level_mixed"};
  return names[static_cast<int>(sharing)];
}

Schedule schedule_of(const Case& c, int r) {
  switch (c.collective) {
    case Collective::allreduce:
      return allreduce_of(c, r);
    case Collective::reduce_scatter:
      return ring_reduce_scatter(r, c.counts, c.pipeline, c.arithmetic);
    case Collective::allgather:
      return ring_allgather(r, c.counts, c.pipeline);
    case Collective::broadcast:
      return tree_broadcast(c.ranks, r, c.root, c.counts[0], c.pipeline, c.in_place);
    case Collective::alltoall:
      return pairwise_alltoall(r, sent_by(c, r), received_by(c, r), c.pipeline);
  }
  fail(ErrorKind::usage, "unknown collective");
}

std::vector<Schedule> schedules_of(const Case& c) {
  check_shape(c);
  std::vector<Schedule> schedules;
  for (int r = 0; r < c.ranks; ++r) schedules.push_back(schedule_of(c, r));
  return schedules;
}

Problem problem_of(const Case& c) {
  check_shape(c);
  Problem p;
  p.in_place = c.in_place;
  p.host_of = c.host_of;
  p.outputs_are_shared = only_in_place(c.sharing) || (c.sharing == Sharing::two_level_mixed && c.in_place);
  const bool two_windows = c.sharing == Sharing::two_level_messages || c.sharing == Sharing::two_level_mixed;
  p.receive_window = two_windows ? 0 : static_cast<uint64_t>(c.pipeline.depth);
  if (c.collective == Collective::alltoall) p.send_window = p.receive_window;
  for (int r = 0; r < c.ranks; ++r) {
    p.inputs.push_back(input_of(c, r));
    p.expected.push_back(expected_of(c, r));
  }
  return p;
}

void check(const Case& c, std::vector<Schedule> schedules, uint64_t first_seed, uint64_t seeds) {
  uint64_t seed = first_seed;
  try {
    Simulation simulation(std::move(schedules), problem_of(c));
    for (; seed < first_seed + seeds; ++seed) simulation.run(seed);
  } catch (const Error& e) {
    throw Error(e.kind(), describe(c) + ", seed " + std::to_string(seed) + ": " + e.what());
  }
}

}  // namespace ringdp::simulate
