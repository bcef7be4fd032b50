#include "engine/launch.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "agree/digest.h"
#include "base/check.h"
#include "device/kernels.h"
#include "engine/chunks.h"
#include "engine/operation.h"
#include "world/gpus.h"

namespace ringdp {

namespace {

// NCCL's minimum and maximum drop a NaN that another rank has, and ours keep it. It rounds the average of integers
// towards zero, so that is a sum, which kernels of ours divide.
bool has_operation(const Submission& s, bool kernels) {
  if (!Communicator::knows(s.dtype)) return false;
  switch (s.op) {
    case ReduceOp::sum:
    case ReduceOp::product:
      return true;
    case ReduceOp::average:
      return is_float(s.dtype) || kernels;
    case ReduceOp::min:
    case ReduceOp::max:
      return !is_float(s.dtype);
    default:
      return false;
  }
}

bool scales_inputs(const Submission& s) {
  return is_float(s.dtype) && (s.op == ReduceOp::sum || s.op == ReduceOp::average);
}

// Without kernels of ours before and after it.
bool is_all_of_it(const Submission& s) { return s.postscale == 1 && (s.prescale == 1 || scales_inputs(s)); }

bool are_equal(const std::vector<Chunk>& chunks) {
  const uint64_t each = chunks[0].end;
  for (size_t i = 0; i < chunks.size(); ++i)
    if (chunks[i].begin != i * each || chunks[i].end != (i + 1) * each) return false;
  return true;
}

}  // namespace

By way_of(const Submission& s, const ProcessSet& set, bool kernels) {
  switch (s.kind) {
    case OpKind::broadcast:
    case OpKind::allgather:
    case OpKind::alltoall:
      return By::nccl;
    case OpKind::allreduce:
    case OpKind::reducescatter:
      break;
    default:
      return By::host_memory;
  }
  if (s.op == ReduceOp::adasum) return By::host_memory;
  if (s.half == Half::all_gather) return By::nccl;
  const bool is_whole = s.kind == OpKind::allreduce && s.half == Half::both;
  const bool can = has_operation(s, kernels) && (kernels || is_all_of_it(s));
  if (can && (is_whole || are_equal(chunks_of(s, set)))) return By::nccl;
  return kernels ? By::chunks : By::host_memory;
}

Launch::Launch(Submission given, ProcessSet& set, uint64_t ticket, std::vector<uint64_t> rows)
    : submission(std::move(given)),
      set(set),
      ticket(ticket),
      rows(std::move(rows)),
      by_(way_of(submission, set, set.gpus->kernels)),
      gpu_(*set.gpus->gpu),
      nccl_(*set.gpus->nccl),
      stream_(submission.graph ? submission.graph->stream() : gpu_.exchange()) {
  if (submission.kind == OpKind::allreduce || submission.kind == OpKind::reducescatter)
    chunks_ = chunks_of(submission, set);
}

std::string Launch::label() const {
  if (submission.lane >= 0) return submission.bucket_name();
  return std::string(name_of(submission.kind)) + " '" + submission.name + "'";
}

bool Launch::prepare() {
  Submission& s = submission;
  try {
    if (submission.graph) replays();
    const uint64_t bytes = scratch_bytes();
    scratch_ = static_cast<std::byte*>(submission.graph ? submission.graph->scratch(bytes) : gpu_.scratch(bytes));
  } catch (const Error&) {
    return false;
  }
  if (!s.first_may_differ()) return true;
  const uint64_t all = std::accumulate(rows.begin(), rows.end(), uint64_t{0});
  {
    const Gpu::Current current(gpu_);  // whatever is captured, it may allocate
    s.output = s.place->allocate(all);
  }
  // Behind what the caller's stream still does in that memory.
  const cuda::Stream stream = stream_at(s.place->stream);
  output_ready_ = s.graph ? gpu_.record_in_graph(stream) : gpu_.record(stream);
  return s.output != nullptr || all * s.row_count() == 0;
}

void Launch::call() {
  submission.place->ready->hold_up(stream_);
  if (output_ready_) output_ready_->hold_up(stream_);
  begins_replay_ = submission.graph && replays().number == 0;
  begins_replay_ ? begin_replay() : carry_out();
}

// The first exchange of a graph. Its place in the order of all is its number, too, which no other one has.
void Launch::begin_replay() {
  replays().begin(Digest().add(clock).add(uint64_t(set.id)).add(uint64_t(lane())).add(sequence()).value());
  nccl_.all_gather(replays().told(), replays().heard(), kernels::gpu::kToldBytes, stream_);
}

CapturedGraph::Replays& Launch::replays() { return submission.graph->replays(set.id, set.size(), set.rank()); }

Gpu::Point Launch::end() {
  if (!submission.graph) return gpu_.record(stream_);
  replays().came_to_next(label());
  return gpu_.record_in_graph(stream_);
}

void Launch::carry_out() {
  const Submission& s = submission;
  switch (s.kind) {
    case OpKind::allreduce:
    case OpKind::reducescatter:
      return begin_reduction();
    case OpKind::broadcast:
      return nccl_.broadcast(s.input, s.output, s.count() * item(), s.root, stream_);
    case OpKind::allgather:
      return call_allgather();
    case OpKind::alltoall:
      return call_alltoall();
    default:
      fail(ErrorKind::internal, "NCCL has no ", name_of(s.kind));
  }
}

// Of different numbers of rows: each rank gives its own to all others.
void Launch::call_allgather() {
  std::vector<Chunk> parts;
  uint64_t at = 0;
  for (const uint64_t n : rows) {
    parts.push_back({at, at + n * submission.row_count()});
    at = parts.back().end;
  }
  gather(submission.input, parts);
}

void Launch::gather(const void* mine, const std::vector<Chunk>& parts) {
  std::byte* all = output();
  if (are_equal(parts)) return nccl_.all_gather(mine, all, size_of(parts[0]) * item(), stream_);
  Communicator::Group group(nccl_);
  for (int rank = 0; rank < set.size(); ++rank) {
    const Chunk& part = parts[static_cast<size_t>(rank)];
    // Who is not the root gives an address all the same, which is not read.
    std::byte* to = all + part.begin * item();
    if (size_of(part) > 0) nccl_.broadcast(rank == set.rank() ? mine : to, to, size_of(part) * item(), rank, stream_);
  }
  group.end();
}

void Launch::call_alltoall() {
  const Submission& s = submission;
  const uint64_t row = s.row_count() * item();
  const auto* from = static_cast<const std::byte*>(s.input);
  std::byte* to = output();
  Communicator::Group group(nccl_);
  for (int rank = 0; rank < set.size(); ++rank) {
    const uint64_t out = s.splits[static_cast<size_t>(rank)] * row, in = rows[static_cast<size_t>(rank)] * row;
    if (out > 0) nccl_.send(from, out, rank, stream_);
    if (in > 0) nccl_.receive(to, in, rank, stream_);
    from += out, to += in;
  }
  group.end();
}

// --- reductions ---------------------------------------------------------------------------------------------------------

void Launch::begin_reduction() {
  const Submission& s = submission;
  if (s.half == Half::all_gather) return gather(own_place(), chunks_);
  return by_ == By::nccl ? reduce_by_nccl() : exchange_chunks();
}

bool Launch::go_on() {
  const Submission& s = submission;
  if (std::exchange(begins_replay_, false)) {
    replays().compare();
    carry_out();
    return true;
  }
  if (is_finished_ || chunks_.empty() || s.half == Half::all_gather) return false;
  is_finished_ = true;
  if (by_ == By::nccl) {
    const bool is_whole = s.kind == OpKind::allreduce && s.half == Half::both;
    finish(is_whole ? output() : own_place(), is_whole ? s.count() : size_of(own()));
    return false;
  }
  reduce_chunks(gpu_, elements_of(s, set.size()), set.size(), own_place(), scratch_, size_of(own()), stream_);
  if (s.kind != OpKind::allreduce || s.half != Half::both) return false;
  gather(own_place(), chunks_);
  return true;
}

void Launch::reduce_by_nccl() {
  const Submission& s = submission;
  const void* from = s.input;
  // Where NCCL scales inputs, the average is a sum of what is divided before.
  const bool scales = s.prescale != 1 && scales_inputs(s);
  const bool sums = scales || !is_float(s.dtype);
  const ReduceOp op = sums && s.op == ReduceOp::average ? ReduceOp::sum : s.op;
  const double factor = scales && s.op == ReduceOp::average ? s.prescale / set.size() : s.prescale;
  if (s.prescale != 1 && !scales) {
    void* scaled = s.kind == OpKind::reducescatter ? scratch_ : s.output;
    kernels().scale(s.dtype, scaled, s.input, s.prescale, s.count(), stream_);
    from = scaled;
  }
  if (s.kind == OpKind::allreduce && s.half == Half::both)
    return nccl_.all_reduce(from, s.output, s.count(), s.dtype, op, scales ? factor : 1, stream_);
  nccl_.reduce_scatter(from, own_place(), size_of(own()), s.dtype, op, scales ? factor : 1, stream_);
}

// Each rank gets its own chunk of all ranks' inputs.
void Launch::exchange_chunks() {
  const auto* from = static_cast<const std::byte*>(submission.input);
  std::byte* to = scratch_;
  const uint64_t mine = size_of(own()) * item();
  Communicator::Group group(nccl_);
  for (int rank = 0; rank < set.size(); ++rank, to += mine) {
    const Chunk& theirs = chunks_[static_cast<size_t>(rank)];
    if (size_of(theirs) > 0) nccl_.send(from + theirs.begin * item(), size_of(theirs) * item(), rank, stream_);
    if (mine > 0) nccl_.receive(to, mine, rank, stream_);
  }
  group.end();
}

// What NCCL has left to do.
void Launch::finish(void* sums, uint64_t count) {
  Elements e = elements_of(submission, set.size());
  if (is_float(e.dtype)) e.divide = 1;
  finish_on_gpu(gpu_, e, sums, count, stream_);
}

Kernels& Launch::kernels() { return Kernels::of(gpu_); }

const Chunk& Launch::own() const { return chunks_[static_cast<size_t>(set.rank())]; }

// All of the output of a reduce-scatter.
std::byte* Launch::own_place() const {
  return submission.kind == OpKind::reducescatter ? output() : output() + own().begin * item();
}

uint64_t Launch::scratch_bytes() const {
  const Submission& s = submission;
  if (chunks_.empty() || s.half == Half::all_gather) return 0;
  if (by_ == By::chunks) return size_of(own()) * item() * static_cast<uint64_t>(set.size());
  const bool is_scaled_there = s.kind == OpKind::reducescatter && s.prescale != 1 && !scales_inputs(s);
  return is_scaled_there ? s.count() * item() : 0;
}

}  // namespace ringdp
