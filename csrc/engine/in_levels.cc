// The all-reduces of GPU tensors that go in two levels (gpu_levels.h): begun, taken from step to step, ended; and the process
// sets that their steps go in.
#include <algorithm>
#include <utility>

#include "engine/engine.h"
#include "engine/launch.h"
#include "world/gpus.h"

namespace ringdp {

// Before any GPU is told anything, all ranks have come to the bucket, or to the named operation, with memory for it.
void Engine::begin_levels(Submission given, ProcessSet& set, uint64_t ticket) {
  const uint64_t id = next_launch_++;
  TwoLevels& levels = in_levels_
                          .emplace(std::piecewise_construct, std::tuple(id),
                                   std::forward_as_tuple(std::move(given), set, ticket, counters_))
                          .first->second;
  Counters::add(counters_.by_two_levels);
  const Submission& s = levels.submission;
  const uint64_t word = levels.prepare();  // votes keep the smaller word
  Note note;
  note.topic = Meetings::bucket;
  note.lane = static_cast<uint32_t>(levels.lane());
  note.key = levels.sequence();
  note.signature = in_generation(generation_, s.lane < 0 ? s.signature() : bucket_signature(s));
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

// As for launches: what not all have come to is given up by itself, and what they have begun together cannot be. A rank that
// has left still takes its steps.
void Engine::check_levels() {
  std::vector<std::pair<uint64_t, Error>> overdue;
  for (const auto& [id, levels] : in_levels_) {
    if (levels.all_have_come && roll_call_.is_over(levels.since))
      fail(ErrorKind::gpu, "rank ", rank_, ": ", levels.label(),
           " did not complete in two levels within RINGDP_TIMEOUT: another rank has stopped, or is far behind");
    if (levels.all_have_come) continue;
    if (const auto why = why_it_ends(levels.set, levels.label(), levels.since)) overdue.emplace_back(id, *why);
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
    if (std::any_of(in_levels_.begin(), in_levels_.end(), goes_on)) continue;
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
