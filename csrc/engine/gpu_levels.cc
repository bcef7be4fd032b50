#include "engine/gpu_levels.h"

#include <algorithm>
#include <utility>

#include "agree/digest.h"
#include "engine/cut.h"
#include "engine/launch.h"
#include "engine/operation.h"
#include "world/gpus.h"

namespace ringdp {

namespace {

// Rings at a time: with one alone the links would rest while the next begins. With more they would all end late, and the
// all-gathers could begin late only.
constexpr int kRings = 2;

}  // namespace

TwoLevels::TwoLevels(Submission given, ProcessSet& set, uint64_t ticket, Counters& counters)
    : submission(std::move(given)),
      set(set),
      ticket(ticket),
      counters_(counters),
      elements_(elements_of(submission, set.size())) {
  const ProcessSet& host = *set.in_host;
  for (const Chunk& all : cut_for_gpu_levels(submission.count(), host.size(), submission.dtype)) {
    const Chunk own = chunk_of(all.end - all.begin, host.size(), host.rank());
    segments_.push_back(
        {all, {all.begin + own.begin, all.begin + own.end}, Step::reduce_scatter, nullptr, submission.place->ready});
  }
  left_ = segments_.size();
}

std::string TwoLevels::label() const {
  if (submission.lane >= 0) return submission.bucket_name();
  return std::string(name_of(submission.kind)) + " '" + submission.name + "'";
}

// What is given back here is found again by the steps: where memory is scarce, they fail before any has begun.
bool TwoLevels::prepare() {
  Gpu& gpu = submission.place->gpu;
  const uint64_t ranks = static_cast<uint64_t>(set.in_host->size());
  std::vector<std::shared_ptr<Gpu::Pinned>> pinned;
  try {
    for (const Segment& segment : segments_) {
      const uint64_t most = (segment.all.end - segment.all.begin + ranks - 1) / ranks * size_of(submission.dtype);
      if (way_of(step_of(segment), *set.in_host, set.in_host->gpus->kernels) == By::chunks) gpu.scratch(most * ranks);
      if (pinned.size() < kRings) pinned.push_back(gpu.pinned(most));
    }
  } catch (const Error&) {
    return false;
  }
  return true;
}

bool TwoLevels::advance(const HandIn& hand_in) {
  bool moved = false;
  for (Segment& segment : segments_) {
    if (segment.step == Step::none || (segment.handle && !segment.handle->done())) continue;
    if (segment.handle) end_step(segment), moved = true;
    if (segment.step == Step::none || (segment.step == Step::ring && rings_ == kRings)) continue;
    if (segment.step == Step::ring)
      ++rings_;
    else if (rings_ > 0)
      Counters::add(counters_.overlapped);
    segment.handle = hand_in(set_of(segment.step), step_of(segment));
    moved = true;
  }
  return moved;
}

void TwoLevels::end_step(Segment& segment) {
  segment.ready = std::exchange(segment.handle, nullptr)->result().completed;
  switch (segment.step) {
    case Step::reduce_scatter:  // a host of more ranks than elements leaves some with none
      segment.step = segment.own.begin == segment.own.end ? Step::all_gather : Step::ring;
      return;
    case Step::ring:
      --rings_;
      segment.step = Step::all_gather;
      return;
    default:
      segment.step = Step::none;
      --left_;
  }
}

// The factors before are the first step's, and those after the ring's; so each element is multiplied once by each, and
// divided once, by the number of all ranks.
Submission TwoLevels::step_of(const Segment& segment) const {
  const bool is_ring = segment.step == Step::ring;
  const uint64_t item = size_of(submission.dtype);
  const Chunk part = is_ring ? segment.own : segment.all;
  Submission s;
  s.key = key_of_step(segment);
  s.dtype = submission.dtype;
  s.shape = {part.end - part.begin};
  s.output = static_cast<std::byte*>(submission.output) + part.begin * item;
  s.input = s.output;
  s.op = submission.op == ReduceOp::average ? ReduceOp::sum : submission.op;
  s.on_gpu = true;
  s.place = std::make_shared<OnGpu>(OnGpu{submission.place->gpu, submission.place->stream, segment.ready, nullptr});
  s.name = submission.lane >= 0 ? submission.bucket_name() : submission.name;
  s.name += ", segment " + std::to_string(&segment - segments_.data());
  if (segment.step == Step::reduce_scatter) {
    s.name += ": reduce-scatter in the host";
    s.input = static_cast<const std::byte*>(submission.input) + part.begin * item;
    s.half = Half::reduce_scatter;
    s.prescale = elements_.prescale;
  } else if (is_ring) {
    s.name += ": between hosts";
    s.postscale = elements_.postscale;
    if (elements_.divide != 1) s.op = ReduceOp::average, s.divides_by = elements_.divide;
  } else {
    s.name += ": all-gather in the host";
    s.half = Half::all_gather;
  }
  return s;
}

// The same on all ranks that take it, and no other step's of an operation under way. Named operations have no plan's lane.
uint64_t TwoLevels::key_of_step(const Segment& segment) const {
  Digest digest;
  digest.add(static_cast<uint64_t>(lane())).add(submission.lane < 0 ? submission.key : sequence());
  return digest.add(segment.all.begin).add(static_cast<uint64_t>(segment.step)).value();
}

}  // namespace ringdp
