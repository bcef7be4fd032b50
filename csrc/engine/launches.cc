// The operations that NCCL carries out: all ranks come to each, agree on its place in the order of all on their GPUs, and
// launch it there.
//
// Communicators that share a GPU, as those of two process sets do, block one another unless every rank launches their
// operations in the same order. The order is that of Skeen's algorithm (Birman, Joseph: Reliable Communication in the
// Presence of Failures, ACM TOCS 5(1), 1987, section 3.4): each rank proposes a number greater than any it has seen, the
// greatest proposal is the operation's, and a rank launches the one with the least number as soon as no other can get a
// smaller one. Only the ranks of a set take part in its operations. A rank proposes only for what all have submitted, so no
// number depends on what a caller still has to do.
#include <algorithm>
#include <cstring>
#include <utility>

#include "agree/digest.h"
#include "base/check.h"
#include "engine/engine.h"
#include "world/gpus.h"

namespace ringdp {

uint64_t bucket_signature(const Submission& bucket) {
  return Digest().add(bucket.plan_digest).add(bucket.bucket).add(bucket.signature()).value();
}

// --- before the GPU ----------------------------------------------------------------------------------------------------

// All ranks have come to a named operation; to a bucket they still have to.
void Engine::begin_launch(Submission s, ProcessSet& set, uint64_t ticket) {
  if (s.first_may_differ()) {  // first the ranks tell each other how many rows there are
    s.by_nccl = true;
    return start(std::move(s), set, ticket, Describe::no);
  }
  add_launch(std::move(s), set, ticket, {});
}

void Engine::sizes_are_known(Operation& operation) {
  ProcessSet& set = process_set(operation.process_set());
  set.lanes[operation.lane()].started.erase(operation.sequence());
  add_launch(operation.take_submission(), set, operation.sequence(), operation.rows());
}

void Engine::add_launch(Submission s, ProcessSet& set, uint64_t ticket, std::vector<uint64_t> rows) {
  const uint64_t id = next_launch_++;
  Launch& launch = launches_
                       .emplace(std::piecewise_construct, std::tuple(id),
                                std::forward_as_tuple(std::move(s), set, ticket, std::move(rows)))
                       .first->second;
  Counters::add(launch.by() == By::chunks ? counters_.by_chunks : counters_.by_nccl);
  if (launch.lane() == 0) return propose(id, launch);
  const Submission& bucket = launch.submission;
  Note note;
  note.topic = Meetings::bucket;
  note.lane = static_cast<uint32_t>(launch.lane());
  note.key = launch.sequence();
  note.signature = in_generation(generation_, bucket_signature(bucket));
  set.meetings().come(note, nullptr, id);
}

void Engine::propose(uint64_t id, Launch& launch) {
  launch.stage = Launch::Stage::ordering;
  launch.clock = ++gpu_clock_;
  const uint64_t word = ~launch.clock;  // votes keep the smaller word
  Note note;
  note.topic = Meetings::order;
  note.lane = static_cast<uint32_t>(launch.lane());
  note.key = launch.sequence();
  note.bytes = sizeof word;
  if (!launch.prepare()) note.flags |= Note::kPoison;
  launch.set.meetings().come(note, &word, id);
}

// All ranks have come to a bucket, or proposed a place.
void Engine::launch_met(ProcessSet& set, Meetings::Meeting& meeting) {
  const auto found = launches_.find(meeting.token);
  const bool agreed = meeting.agreed, is_bucket = meeting.mine.topic == Meetings::bucket;
  const uint64_t id = meeting.token;
  const std::vector<uint64_t> words = merged_words(set, meeting);
  set.meetings().close(meeting);
  if (in_levels_.count(id) > 0) return levels_met(id, agreed, agreed && words.at(0) > 0);
  if (found == launches_.end()) return;  // given up here
  Launch& launch = found->second;
  if (!agreed) {
    const std::string who = "rank " + std::to_string(launch.set.name()) + ": " + launch.label();
    return fail_launch(
        id, is_bucket ? Error(ErrorKind::mismatch, who + " is another one on another rank")
                      : Error(ErrorKind::gpu,
                              who + " failed: a rank has no memory for its output, or for what comes in between"));
  }
  if (is_bucket) return propose(id, launch);
  launch.clock = ~words.at(0);
  launch.stage = Launch::Stage::ordered;
  gpu_clock_ = std::max(gpu_clock_, launch.clock);
}

// --- on the GPU ----------------------------------------------------------------------------------------------------------

bool Engine::advance_launches() {
  bool moved = false;
  for (;; moved = true) {
    if (calling_) {
      Launch& launch = launches_.at(*calling_);
      if (!launch.settled()) return moved;
      if (launch.go_on()) continue;
      launched(*calling_, launch);
      calling_.reset();
    } else if (const auto next = next_launch()) {
      Launch& launch = launches_.at(*next);
      launch.submission.handle->enter(Stage::reduce);
      timeline_.stamp(launch.submission.came.reduce);
      launch.call();
      launch.stage = Launch::Stage::calling;
      calling_ = next;
    } else {
      return moved;
    }
  }
}

std::optional<uint64_t> Engine::next_launch() const {
  const std::pair<const uint64_t, Launch>* least = nullptr;
  for (const auto& entry : launches_) {
    if (entry.second.stage == Launch::Stage::meeting) continue;
    if (least == nullptr || entry.second.place() < least->second.place()) least = &entry;
  }
  if (least == nullptr || least->second.stage != Launch::Stage::ordered) return std::nullopt;
  return least->first;
}

// The GPU has been told: that is all a caller waits for.
void Engine::launched(uint64_t id, Launch& launch) {
  Result result;
  result.rows = launch.rows;
  result.completed = launch.end();
  if (launch.submission.graph)
    note_graph(launch);
  else
    running_.push_back({launch.label(), launch.set.id, result.completed, Deadline::in(Seconds(options_.timeout))});
  ended(launch.submission, launch.set, launch.ticket);
  launch.submission.handle->finish(std::move(result));
  launches_.erase(id);
}

// --- what goes wrong -------------------------------------------------------------------------------------------------------

void Engine::fail_launch(uint64_t id, const Error& error) {
  const auto launch = launches_.extract(id);
  fail_agreed(launch.mapped().set, launch.mapped().submission, launch.mapped().ticket, error);
}

// What has been agreed on, and has its ticket or its place in a lane.
void Engine::fail_agreed(ProcessSet& set, const Submission& s, uint64_t ticket, const Error& error) {
  has_failed(set, std::max(s.lane, 0), Tickets::sequence_of(ticket));
  ended(s, set, ticket);
  s.handle->fail(error);
  if (s.group) fail_group(s, error);
}

// It waits in vain, or has waited for too long.
std::optional<Error> Engine::why_it_ends(ProcessSet& set, const std::string& label, Clock::time_point since) {
  const std::string what = "rank " + std::to_string(rank_) + ": " + label;
  const int left = set.meetings().first_left();
  if (left >= 0 && stuck()) return Error(ErrorKind::peer, what + " cannot complete: " + set.has_left(left));
  if (!roll_call_.is_over(since)) return std::nullopt;
  return roll_call_.late(label + " waited RINGDP_TIMEOUT seconds, and at least one rank has not come to it");
}

void Engine::check_failures() const {
  for (const auto& [id, set] : sets_)
    if (const int failed = set->meetings().first_failed(); failed >= 0)
      fail(ErrorKind::peer, "rank ", rank_, ": rank ", set->data->name_of(failed),
           " has failed (on its GPU, or a message to it was damaged), and what it exchanged with others is lost; its "
           "own "
           "message says why");
}

// A bucket that not all have come to is given up by itself. From the proposal on nothing depends on any caller, and other
// ranks may have launched it: where that gets stuck, a rank is gone.
void Engine::check_launches() {
  check_failures();
  std::vector<std::pair<uint64_t, Error>> overdue;
  for (const auto& [id, launch] : launches_) {
    const auto why = why_it_ends(launch.set, launch.label(), launch.since);
    if (!why) continue;
    if (launch.stage != Launch::Stage::meeting) throw Error(*why);
    overdue.emplace_back(id, *why);
  }
  for (const auto& [id, error] : overdue) fail_launch(id, error);
  watch_gpus();
}

// What a GPU has been told cannot be taken back: where it fails, or does not end, the engine ends, and with it all
// communicators, so that no GPU is left waiting.
void Engine::watch_gpus() {
  for (const auto& [id, set] : sets_)
    if (set->gpus && set->gpus->nccl_is_in_use()) static_cast<void>(set->gpus->nccl->settled());
  watch_graphs();
  for (auto it = running_.begin(); it != running_.end();) {
    if (it->completed->passed())
      it = running_.erase(it);
    else if (it->until.passed())
      fail(ErrorKind::gpu, "rank ", rank_, ": ", it->label, " did not complete on the GPU within RINGDP_TIMEOUT");
    else
      ++it;
  }
}

void Engine::abort_communicators(const Error& why) {
  end_graphs(why);
  for (const auto& [id, set] : sets_)
    if (set->gpus && set->gpus->nccl) set->gpus->nccl->abort();
}

// The others may be waiting for this rank, or their GPUs for its.
void Engine::tell_of_failure() {
  for (const auto& [id, set] : sets_) {
    try {
      set->meetings().leave(true);
      if (set->letters && !set->one_host()) set->letters->leave(true);
    } catch (const Error&) {  // what can be told is told
    }
  }
}

// All ranks have left, so all do this now.
void Engine::end_communicators() {
  end_graphs(closed_error());
  const Deadline until = Deadline::in(Seconds(5));
  for (const auto& [id, set] : sets_) {
    if (!set->gpus || !set->gpus->nccl) continue;
    try {
      while (!set->gpus->nccl->end() && !until.passed()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    } catch (const Error&) {  // it is aborted with the set
    }
  }
}

}  // namespace ringdp
