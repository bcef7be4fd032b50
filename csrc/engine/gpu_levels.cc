#include "engine/gpu_levels.h"

#include <algorithm>
#include <utility>

#include "agree/digest.h"
#include "engine/cut.h"
#include "engine/engine.h"
#include "engine/launch.h"
#include "world/gpus.h"

namespace ringdp {

namespace {

// Rings at a time: with one alone the links would rest while the next begins. With more they would all end late, and the
// all-gathers could begin late only.
constexpr int kRings = 2;

}  // namespace

TwoLevels::TwoLevels(Submission given, ProcessSet& set, uint64_t ticket, Deadline deadline, Counters& counters)
    : submission(std::move(given)),
      set(set),
      ticket(ticket),
      deadline(deadline),
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

// --- the engine's part --------------------------------------------------------------------------------------------------

// Before any GPU is told anything, all ranks have come to the bucket, or to the named operation, with memory for it.
void Engine::begin_levels(Submission given, ProcessSet& set, uint64_t ticket) {
  const uint64_t id = next_launch_++;
  TwoLevels& levels = in_levels_
                          .emplace(std::piecewise_construct, std::tuple(id),
                                   std::forward_as_tuple(std::move(given), set, ticket,
                                                         Deadline::in(Seconds(options_.timeout)), counters_))
                          .first->second;
  Counters::add(counters_.by_two_levels);
  const Submission& s = levels.submission;
  const uint64_t word = levels.prepare();  // votes keep the smaller word
  Note note;
  note.topic = Meetings::bucket;
  note.lane = static_cast<uint32_t>(levels.lane());
  note.key = levels.sequence();
  note.signature = s.lane < 0 ? s.signature() : bucket_signature(s);
  note.bytes = sizeof word;
  set.meetings().come(note, &word, id);
}

void Engine::levels_met(uint64_t id, bool agreed, bool have_memory) {
  TwoLevels& levels = in_levels_.at(id);
  const std::string who = "rank " + std::to_string(levels.set.name()) + ": " + levels.label();
  if (!agreed) return fail_levels(id, Error(ErrorKind::mismatch, who + " is another one on another rank"));
  if (!have_memory)
    return fail_levels(id, Error(ErrorKind::gpu, who + " failed: a rank has no memory for what comes in between"));
  levels.all_have_come = true;
  levels.submission.handle->enter(Stage::reduce);
  timeline_.stamp(levels.submission.came.reduce);
}

bool Engine::advance_levels() {
  bool moved = false;
  const TwoLevels::HandIn hand_in = [this](ProcessSet& set, Submission s) {
    s.process_set = set.id;
    const auto handle = s.handle = std::make_shared<Handle>();
    take_named(std::move(s), set);
    return handle;
  };
  for (auto it = in_levels_.begin(); it != in_levels_.end();) {
    TwoLevels& levels = it->second;
    if (levels.all_have_come) moved |= take_steps(levels, hand_in);
    it = levels.all_have_come && levels.done() ? in_levels_.erase(it) : std::next(it);
  }
  return moved;
}

// A step that fails on one rank leaves the others waiting, some of them in another host: so the engine ends, and tells them.
bool Engine::take_steps(TwoLevels& levels, const TwoLevels::HandIn& hand_in) {
  bool moved;
  try {
    moved = levels.advance(hand_in);
  } catch (const Error& error) {
    check_failures();  // of others come first: theirs is the cause
    fail(ErrorKind::gpu, "rank ", rank_, ": ", levels.label(), " failed in two levels: ", error.what());
  }
  if (!levels.done()) return moved;
  Result result;
  Gpu& gpu = levels.submission.place->gpu;
  result.completed = gpu.record(gpu.exchange());  // behind the last all-gather
  ended(levels.submission, levels.set, levels.ticket);
  levels.submission.handle->finish(std::move(result));
  return true;
}

void Engine::fail_levels(uint64_t id, const Error& error) {
  const auto levels = in_levels_.extract(id);
  fail_agreed(levels.mapped().set, levels.mapped().submission, levels.mapped().ticket, error);
}

// As for launches: what not all have come to is given up by itself, and what they have begun together cannot be.
void Engine::check_levels() {
  std::vector<std::pair<uint64_t, Error>> overdue;
  for (const auto& [id, levels] : in_levels_) {
    const auto why = why_it_ends(levels.set, levels.label(), levels.deadline);
    if (!why) continue;
    if (levels.all_have_come)
      fail(ErrorKind::gpu, "rank ", rank_, ": ", levels.label(),
           " did not end in two levels: another rank has stopped, or has shut ringdp down");
    overdue.emplace_back(id, *why);
  }
  for (const auto& [id, error] : overdue) fail_levels(id, error);
}

// --- the sets of the levels ----------------------------------------------------------------------------------------------

// Chunks in the host are those of a ring: the k-th for the k-th rank, which NCCL has, too.
std::vector<std::unique_ptr<ProcessSet>> Engine::new_sets(int id, Membership membership, Chooser chooser) {
  const auto in_host = std::move(membership.in_host), between_hosts = std::move(membership.between_hosts);
  std::vector<std::unique_ptr<ProcessSet>> made;
  made.push_back(new_set(id, std::move(membership), std::move(chooser)));
  if (!in_host) return made;
  const auto add = [&](int number, Membership& level, const std::string& algorithm) {
    Chooser its = make_chooser(placement_of(level), algorithm, options_.profile);
    made.push_back(new_set(number, std::move(level), std::move(its)));
    return made.back().get();
  };
  ProcessSet& set = *made[0];
  set.in_host = add(ProcessSet::in_host_of(id), *in_host, "ring");
  set.between_hosts = add(ProcessSet::between_hosts_of(id), *between_hosts, options_.algorithm);
  set.between_hosts->gpus = std::make_unique<Gpus>();
  set.between_hosts->gpus->way = Gpus::Way::host;
  return made;
}

void Engine::keep(std::vector<std::unique_ptr<ProcessSet>> made) {
  for (auto& set : made) {
    const int id = set->id;
    sets_[id] = std::move(set);
  }
}

// Others may still need this rank in the levels when it has left: until all have, and no step is to come.
void Engine::leave_levels() {
  for (auto& [id, set] : sets_) {
    const int number = id;
    const auto goes_on = [number](const auto& entry) { return entry.second.set.id == number; };
    if (!set->in_host || set->in_host->left || !set->meetings().all_left()) continue;
    if (std::any_of(in_levels_.begin(), in_levels_.end(), goes_on) && !stuck()) continue;
    leave(*set->in_host);
    leave(*set->between_hosts);
  }
}

// --- the way -----------------------------------------------------------------------------------------------------------

// Each host finds its own, as any process set does, and tells the others what stands against NCCL there.
bool Engine::hosts_have_found_ways(ProcessSet& set) {
  ProcessSet& host = *set.in_host;
  if (!host.gpus) look_for_way(host, *set.gpus->gpu);
  const Gpus& found = *host.gpus;
  if (!found.is_decided()) return false;
  if (found.way == Gpus::Way::failed) set.gpus->said = found.asked->error().what();
  if (found.way == Gpus::Way::host) set.gpus->said = "NCCL cannot be had in its host: " + found.why_host;
  tell_text(set, Gpus::Way::made, "made");
  return true;
}

}  // namespace ringdp
