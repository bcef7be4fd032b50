#include "exchanged.h"

#include <algorithm>
#include <cstring>

#include "kernels/kernels.h"

namespace ringdp::tests {

namespace {

template <class T>
std::vector<std::byte> as(const std::vector<int64_t>& numbers) {
  const std::vector<T> converted(numbers.begin(), numbers.end());
  std::vector<std::byte> bytes(converted.size() * sizeof(T));
  if (!bytes.empty()) std::memcpy(bytes.data(), converted.data(), bytes.size());
  return bytes;
}

uint64_t rows_of(const Task& task, int place) { return (task.count * static_cast<uint64_t>(place + 1)) % 50; }

// 1 to 7: sums of five are exact in bfloat16, also of what is a multiple of five, or of halves.
int64_t number(int task, int rank, uint64_t i) {
  return static_cast<int64_t>((3 * i + 5 * static_cast<uint64_t>(rank) + static_cast<uint64_t>(task)) % 7) + 1;
}

int64_t combined(ReduceOp op, int64_t a, int64_t b) {
  switch (op) {
    case ReduceOp::min:
      return std::min(a, b);
    case ReduceOp::max:
      return std::max(a, b);
    case ReduceOp::product:
      return a * b;
    default:
      return a + b;
  }
}

const std::vector<int>& set_of(const Scenario& scenario, int task) {
  return scenario.sets[static_cast<size_t>(scenario.tasks[static_cast<size_t>(task)].set)];
}

std::vector<int64_t> reduced(const Scenario& scenario, int task) {
  const Task& t = scenario.tasks[static_cast<size_t>(task)];
  std::vector<int64_t> result;
  for (const int rank : t.ranks) {
    const std::vector<int64_t> theirs = contribution(scenario, task, rank);
    if (result.empty()) {
      result = theirs;
      continue;
    }
    for (size_t i = 0; i < result.size(); ++i) result[i] = combined(t.op, result[i], theirs[i]);
  }
  for (int64_t& x : result) {
    if (t.op == ReduceOp::average) x /= static_cast<int64_t>(set_of(scenario, task).size());
    if (t.prescale != 1) x *= 2;  // 0.5 before, 4 after
  }
  return result;
}

}  // namespace

std::vector<std::byte> encoded(Dtype dtype, const std::vector<int64_t>& numbers) {
  switch (dtype) {
    case Dtype::uint8:
      return as<uint8_t>(numbers);
    case Dtype::int32:
      return as<int32_t>(numbers);
    case Dtype::float32:
      return as<float>(numbers);
    case Dtype::float64:
      return as<double>(numbers);
    default:
      break;
  }
  const std::vector<float> wide(numbers.begin(), numbers.end());
  std::vector<std::byte> bytes(wide.size() * size_of(dtype));
  kernels::narrow(dtype, bytes.data(), Dtype::float32, wide.data(), wide.size());
  return bytes;
}

uint64_t split(const Task& task, int from, int to) {
  return (task.count + static_cast<uint64_t>(from) + 2 * static_cast<uint64_t>(to)) % 4;
}

std::vector<int64_t> contribution(const Scenario& scenario, int task, int rank) {
  const Task& t = scenario.tasks[static_cast<size_t>(task)];
  const int place = scenario.place(task, rank);
  const auto ranks = static_cast<int>(set_of(scenario, task).size());
  uint64_t count = t.count;
  if (t.kind == OpKind::allgather) count = rows_of(t, place);
  if (t.kind == OpKind::alltoall) {
    count = 0;
    for (int to = 0; to < ranks; ++to) count += split(t, place, to);
  }
  std::vector<int64_t> numbers(count);
  for (uint64_t i = 0; i < count; ++i) {
    numbers[i] = number(task, rank, i);
    if (t.op == ReduceOp::average) numbers[i] *= ranks;
    if (t.op == ReduceOp::product) numbers[i] = numbers[i] % 2 + 1;
  }
  return numbers;
}

std::vector<int64_t> expected(const Scenario& scenario, int task, int rank) {
  const Task& t = scenario.tasks[static_cast<size_t>(task)];
  const std::vector<int>& set = set_of(scenario, task);
  const int place = scenario.place(task, rank), ranks = static_cast<int>(set.size());
  std::vector<int64_t> result;
  switch (t.kind) {
    case OpKind::allreduce:
      return reduced(scenario, task);
    case OpKind::reducescatter: {
      const std::vector<int64_t> all = reduced(scenario, task);
      const Chunk mine = chunk_of(t.count, ranks, place);
      return {all.begin() + static_cast<long>(mine.begin), all.begin() + static_cast<long>(mine.end)};
    }
    case OpKind::broadcast:
      return contribution(scenario, task, set[static_cast<size_t>(t.root)]);
    case OpKind::allgather:
      for (const int from : t.ranks)
        for (const int64_t x : contribution(scenario, task, from)) result.push_back(x);
      return result;
    case OpKind::alltoall:
      for (int from = 0; from < ranks; ++from) {
        const std::vector<int64_t> theirs = contribution(scenario, task, set[static_cast<size_t>(from)]);
        uint64_t at = 0;
        for (int to = 0; to < place; ++to) at += split(t, from, to);
        for (uint64_t i = 0; i < split(t, from, place); ++i) result.push_back(theirs[at + i]);
      }
      return result;
    default:
      return {};
  }
}

std::vector<uint64_t> fields(int task, int rank) {
  const auto t = static_cast<uint64_t>(task), r = static_cast<uint64_t>(rank);
  return {t + r, t + 100 - r, ~uint64_t{0} - t};
}

}  // namespace ringdp::tests
