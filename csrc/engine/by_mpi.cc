// What an operation does with tensors that MPI takes from a GPU (direct.h): it waits for events by looking at them, turn by
// turn, and runs the schedules of messages on addresses that only the GPU and MPI may use.
//
//   broadcast, all-gather, all-to-all      ready → messages
//   reduce-scatter                         ready → own chunk of all → kernels
//   all-reduce                             ready → own chunk of all → kernels → done → all chunks to all
//
// A reduction has written nothing to its output until the kernels begin; by then all ranks have compared their headers,
// each with each.
#include <algorithm>
#include <utility>

#include "base/check.h"
#include "engine/operation.h"

namespace ringdp {

void Operation::wait_for(Gpu::Point point, Next next) {
  run_.reset();
  awaited_ = std::move(point);
  next_ = next;
}

bool Operation::arrive() {
  if (!awaited_->passed()) return false;
  awaited_.reset();
  (this->*next_)();
  return true;
}

void Operation::begin_direct() {
  Counters::add(counters_.by_mpi);
  try {
    direct_ = std::make_unique<Direct>(submission_, set_);
  } catch (const Error& error) {  // the others must hear of it
    return poison(error.what());
  }
  wait_for(direct_->ready(), &Operation::start);
}

// A message costs a call of the driver, or more, whatever its length; and both ends of a channel must cut alike.
Pipeline Operation::direct_pipeline(uint64_t chunk_elements) const {
  constexpr uint64_t kLeastSegment = 512 << 10;
  Pipeline cut = pipeline(chunk_elements, submission_.dtype);
  cut.segment = std::max(cut.segment, kLeastSegment / size_of(submission_.dtype));
  return cut;
}

void Operation::start_direct() {
  const Submission& s = submission_;
  if (direct_->reduces()) {
    const uint64_t each = s.count() / static_cast<uint64_t>(set_.size());
    return start_run(direct_->exchange(direct_pipeline(each)), direct_->exchanged(), elements(), 1);
  }
  if (direct_->gathers()) return gather_direct();
  RINGDP_CHECK(s.kind == OpKind::broadcast);
  start_run(
      tree_broadcast(set_.size(), set_.rank(), s.root, s.count(), direct_pipeline(s.count()), s.input == s.output),
      direct_->tensors(), elements(), 1);
}

void Operation::gather_direct() {
  const uint64_t each = submission_.count() / static_cast<uint64_t>(set_.size());
  start_run(direct_->gather(direct_pipeline(each)), direct_->gathered(), elements(), 2);
}

// Of all-gather and all-to-all, when all know how many rows come from where.
void Operation::start_direct_rows() {
  uint64_t rows = 0;
  for (const uint64_t n : result_.rows) rows += n;
  wait_for(direct_->ask_for_output(rows), &Operation::run_direct_rows);
}

void Operation::run_direct_rows() {
  const Submission& s = submission_;
  const auto elements_in = [&](const std::vector<uint64_t>& rows) {
    std::vector<uint64_t> counts;
    for (const uint64_t n : rows) counts.push_back(n * s.row_count());
    return counts;
  };
  const std::vector<uint64_t> counts = elements_in(result_.rows);
  if (s.kind == OpKind::alltoall)
    start_run(pairwise_alltoall(set_.rank(), elements_in(s.splits), counts, direct_pipeline(0)), direct_->tensors(),
              elements(), 1);
  else
    start_run(ring_allgather(set_.rank(), counts, direct_pipeline(*std::max_element(counts.begin(), counts.end()))),
              direct_->tensors(), elements(), 1);
  if (s.output == nullptr && result_.output_bytes > 0) run_->poison(no_output());
}

// What was to come has come, and what was sent has left.
void Operation::direct_run_finished() {
  if (!direct_->reduces() || std::exchange(reduced_, true)) return finish();
  Gpu::Point reduced = direct_->reduce();
  if (direct_->gathers()) return wait_for(std::move(reduced), &Operation::gather_direct);
  finish();
}

}  // namespace ringdp
