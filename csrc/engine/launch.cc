#include "engine/launch.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"
#include "collectives/schedule.h"
#include "world/gpus.h"

namespace ringdp {

namespace {

bool scales_inputs_only(const Submission& s) {
  if (s.postscale != 1) return false;
  return s.prescale == 1 || (is_float(s.dtype) && (s.op == ReduceOp::sum || s.op == ReduceOp::average));
}

// NCCL rounds the average of integers towards zero, drops NaNs in Min and Max, and knows nothing of Adasum.
bool has_operation(const Submission& s) {
  if (s.op == ReduceOp::min || s.op == ReduceOp::max) return !is_float(s.dtype);
  return s.op != ReduceOp::adasum && (s.op != ReduceOp::average || is_float(s.dtype));
}

std::byte* bytes_at(void* memory, uint64_t elements, Dtype dtype) {
  return static_cast<std::byte*>(memory) + elements * size_of(dtype);
}
const std::byte* bytes_at(const void* memory, uint64_t elements, Dtype dtype) {
  return static_cast<const std::byte*>(memory) + elements * size_of(dtype);
}

}  // namespace

bool is_for_nccl(const Submission& s, int ranks) {
  if (!Communicator::knows(s.dtype) || s.half != Half::both) return false;
  switch (s.kind) {
    case OpKind::allreduce:
      return has_operation(s) && scales_inputs_only(s);
    case OpKind::reducescatter:
      return has_operation(s) && scales_inputs_only(s) && s.shape[0] % static_cast<uint64_t>(ranks) == 0;
    case OpKind::broadcast:
    case OpKind::allgather:
    case OpKind::alltoall:
      return true;
    default:
      return false;
  }
}

std::string Launch::label() const {
  if (submission.lane >= 0) return submission.bucket_name();
  return std::string(name_of(submission.kind)) + " '" + submission.name + "'";
}

bool Launch::prepare() {
  Submission& s = submission;
  if (!s.first_may_differ()) return true;
  const uint64_t all = std::accumulate(rows.begin(), rows.end(), uint64_t{0});
  s.output = s.place->allocate(all);
  // Behind what the caller's stream still does in that memory.
  output_ready = set.gpus->gpu->record(stream_at(s.place->stream));
  return s.output != nullptr || all * s.row_count() == 0;
}

void Launch::call() {
  Submission& s = submission;
  Gpu& gpu = *set.gpus->gpu;
  Communicator& nccl = *set.gpus->nccl;
  s.place->ready->hold_up(gpu.exchange());
  if (output_ready) output_ready->hold_up(gpu.exchange());
  // Where inputs are scaled, the average is a sum of what is divided before.
  const bool scaled_average = s.op == ReduceOp::average && s.prescale != 1;
  const ReduceOp op = scaled_average ? ReduceOp::sum : s.op;
  const double prescale = scaled_average ? s.prescale / set.size() : s.prescale;
  switch (s.kind) {
    case OpKind::allreduce:
      return nccl.all_reduce(s.input, s.output, s.count(), s.dtype, op, prescale);
    case OpKind::reducescatter:
      return nccl.reduce_scatter(s.input, s.output, s.count() / static_cast<uint64_t>(set.size()), s.dtype, op,
                                 prescale);
    case OpKind::broadcast:
      return nccl.broadcast(s.input, s.output, s.count(), s.dtype, s.root);
    case OpKind::allgather:
      return call_allgather(nccl);
    case OpKind::alltoall:
      return call_alltoall(nccl);
    default:
      fail(ErrorKind::internal, "NCCL has no ", name_of(s.kind));
  }
}

// Of different numbers of rows: each rank gives its own to all others.
void Launch::call_allgather(Communicator& nccl) {
  const Submission& s = submission;
  if (std::all_of(rows.begin(), rows.end(), [&](uint64_t n) { return n == rows[0]; }))
    return nccl.all_gather(s.input, s.output, rows[0] * s.row_count(), s.dtype);
  Communicator::Group group(nccl);
  uint64_t at = 0;
  for (int rank = 0; rank < set.size(); ++rank) {
    const uint64_t count = rows[static_cast<size_t>(rank)] * s.row_count();
    // Who is not the root gives an address all the same, which is not read.
    void* to = bytes_at(s.output, at, s.dtype);
    if (count > 0) nccl.broadcast(rank == set.rank() ? s.input : to, to, count, s.dtype, rank);
    at += count;
  }
  group.end();
}

void Launch::call_alltoall(Communicator& nccl) {
  const Submission& s = submission;
  Communicator::Group group(nccl);
  uint64_t from = 0, to = 0;
  for (int rank = 0; rank < set.size(); ++rank) {
    const uint64_t out = s.splits[static_cast<size_t>(rank)] * s.row_count();
    const uint64_t in = rows[static_cast<size_t>(rank)] * s.row_count();
    if (out > 0) nccl.send(bytes_at(s.input, from, s.dtype), out, s.dtype, rank);
    if (in > 0) nccl.receive(bytes_at(s.output, to, s.dtype), in, s.dtype, rank);
    from += out, to += in;
  }
  group.end();
}

}  // namespace ringdp
