// How things end that do not end well: deadlines, ranks that have left, plans that have failed, the engine itself.
#include <algorithm>
#include <utility>

#include "engine/engine.h"

namespace ringdp {

namespace {

constexpr auto kGraceAfterDeparture = std::chrono::seconds(2);

Question question_about(const Submission& s, uint64_t sequence) {
  Question q;
  q.key = s.key;
  q.sequence = sequence;
  q.process_set = s.process_set;
  q.lane = std::max(s.lane, 0);
  q.kind = static_cast<uint8_t>(s.kind);
  return q;
}

Question question_about_vote(int process_set, int lane, uint64_t number) {
  Question q;
  q.sequence = number;
  q.process_set = process_set;
  q.lane = lane;
  q.kind = FlightRecord::kVote;
  return q;
}

}  // namespace

Error closed_error() { return {ErrorKind::closed, "ringdp was shut down; call ringdp.init() again first"}; }

// Ten looks a second: an operation whose deadline has passed fails here. Its memory may still be in the transport's
// hands, so it is parked; the lane of a plan is broken by it.
void Engine::check_deadlines() {
  const auto now = Clock::now();
  if (now - last_check_ < std::chrono::milliseconds(100)) return;
  last_check_ = now;
  roll_call_.look([this] { return longest_wait(); });
  for_each_not_started([&](Submission& s) {  // it stays pending: the other ranks may have counted on it already
    if (s.handle->done() || !roll_call_.is_over(s.handle->made())) return;
    s.handle->give_up_memory();
    s.handle->fail(
        roll_call_.late(s.label() + " waited RINGDP_TIMEOUT seconds, and at least one rank has not submitted it"));
  });
  for (auto& [id, set] : sets_) check_votes(*set);
  check_launches();
  check_levels();
  for (auto it = active_.begin(); it != active_.end();) {
    const auto here = it++;
    if (!roll_call_.is_over(here->began())) continue;
    here->give_up(roll_call_.late(here->label() +
                                  " did not complete within RINGDP_TIMEOUT: another rank has stopped, is far "
                                  "behind, or has not come to this operation"));
    finished(*here);
    parked_.splice(parked_.end(), active_, here);
  }
}

// None: this rank waits for nothing.
std::optional<Wait> Engine::longest_wait() {
  Wait longest;
  longest.since = Clock::time_point::max();
  const auto consider = [&](Clock::time_point since, const Question& question, const auto& label) {
    if (since >= longest.since) return;
    longest.since = since;
    longest.question = question;
    longest.what = label();
  };
  for_each_not_started([&](const Submission& s) {
    if (!s.handle->done()) consider(s.handle->made(), question_about(s, 0), [&] { return s.label(); });
  });
  for (const auto& [id, set] : sets_)
    for (const auto& [lane_id, lane] : set->lanes) {
      if (lane.votes.empty()) continue;
      const Question question = question_about_vote(id, lane_id, lane.votes_begun - 1);
      const int plan = lane_id;
      consider(lane.votes.front().handle->made(), question,
               [plan] { return "the vote of plan " + std::to_string(plan); });
    }
  for (const Operation& one : active_) {
    if (one.submission().handle->done() || one.submission().absent) continue;
    consider(one.began(), question_about(one.submission(), one.sequence()), [&] { return one.label(); });
  }
  for (const auto& [id, launch] : launches_)
    consider(launch.submission.handle->made(), question_about(launch.submission, 0),
             [&, &l = launch] { return l.label(); });
  if (longest.since == Clock::time_point::max()) return std::nullopt;
  longest.ranks = process_set(longest.question.process_set).ranks;
  return longest;
}

void Engine::check_votes(ProcessSet& set) {
  for (auto& [lane_id, lane] : set.lanes) {
    if (lane.votes.empty() || !roll_call_.is_over(lane.votes.front().handle->made())) continue;
    fail_votes(lane, roll_call_.late("the vote of plan " + std::to_string(lane_id) +
                                     " waited RINGDP_TIMEOUT seconds, and at least one rank has not come to it"));
  }
}

// A vote that one rank has given up never ends on the others: there is none after it in this lane.
void Engine::fail_votes(Lane& lane, const Error& error) {
  lane.broken = true;
  for (Vote& vote : lane.votes) vote.handle->fail(error);
  lane.votes.clear();
}

// A rank that has shut down submits no more buckets and votes in no step: what waits for it, and has not moved for a
// while (data that it sent before may still be under way), fails with its number.
void Engine::check_departures() {
  const auto stuck_since = Clock::now() - kGraceAfterDeparture;
  for (auto& [id, set] : sets_) {
    const int gone = set->meetings().first_left();
    if (gone < 0) continue;
    const Error error(ErrorKind::peer,
                      "rank " + std::to_string(rank_) + ": this step cannot complete: " + set->has_left(gone));
    for (auto it = active_.begin(); it != active_.end();) {
      const auto here = it++;
      if (here->process_set() != id || here->lane() == 0 || here->last_move() > stuck_since) continue;
      here->give_up(error);
      finished(*here);
      parked_.splice(parked_.end(), active_, here);
    }
    for (auto& [lane_id, lane] : set->lanes)
      if (!lane.votes.empty() && stuck()) fail_votes(lane, error);
  }
}

// Of a bucket: those behind it in its lane fail, too, when the turn is over.
void Engine::has_failed(ProcessSet& set, int lane_id, uint64_t sequence) {
  if (lane_id == 0) return;
  set.lanes[lane_id].broken = true;
  broken_lanes_.emplace(std::pair(set.id, lane_id), sequence);
}

void Engine::break_lanes() {
  const auto lanes = std::exchange(broken_lanes_, {});
  for (const auto& [key, failed] : lanes) break_lane(process_set(key.first), key.second, failed);
}

// An operation of a plan that fails, fails on every rank; each then accepts nothing more in the lane. So whatever this
// rank has started there since would wait for ranks that never will. What came before, votes too, was started by all,
// and ends by itself.
void Engine::break_lane(ProcessSet& set, int lane_id, uint64_t failed) {
  const Error error(ErrorKind::peer, "rank " + std::to_string(rank_) + ": plan " + std::to_string(lane_id) +
                                         " has failed in an earlier operation of this step" + set.because());
  Lane& lane = set.lanes[lane_id];
  for (auto it = active_.begin(); it != active_.end();) {
    const auto here = it++;
    if (here->process_set() != set.id || here->lane() != lane_id || here->sequence() < failed) continue;
    here->give_up(error);
    lane.started.erase(here->sequence());
    here->deliver();
    parked_.splice(parked_.end(), active_, here);
  }
  for (Start& start : waiting_[{set.id, lane_id}]) start.submission.handle->fail(error);
  waiting_[{set.id, lane_id}].clear();
  lane.broken = true;
  while (!lane.votes.empty() && lane.votes.back().behind > failed) {
    lane.votes.back().handle->fail(error);
    lane.votes.pop_back();
  }
}

bool Engine::stuck() const { return still_ >= kStill && Clock::now() - last_move_ > kGraceAfterDeparture; }

// All ranks have left, and what they had begun together has ended on all of them, or has not moved for so long that it cannot.
bool Engine::everyone_left() const {
  const auto relays = [](const auto& entry) { return entry.second->meetings().relays(); };
  return left_ &&
         ((active_.empty() && launches_.empty() && in_levels_.empty() && running_.empty() && !anything_waiting() &&
           std::none_of(sets_.begin(), sets_.end(), relays)) ||
          stuck()) &&
         std::all_of(sets_.begin(), sets_.end(), [](const auto& entry) { return entry.second->meetings().all_left(); });
}

// Other ranks may still be there, and what they send must not arrive in memory that is no longer ours.
void Engine::take_receives_back() {
  for (Operation& operation : active_) operation.give_up(closed_error());
  for (auto& [id, set] : sets_) set->doubling.cancel();
}

// --- deaths ----------------------------------------------------------------------------------------------------------

// A process that has ended without leaving takes everything along: its ranks' memory may be half written.
void Engine::look_for_dead() {
  const std::optional<std::string> verdict = alarm_.look();
  if (verdict && !left_) throw Error(ErrorKind::peer, "rank " + std::to_string(rank_) + ": " + *verdict);
  if (!left_ && process_set(0).control->is_revoked())
    fail(ErrorKind::peer, "rank ", rank_, ": another rank is lost, or goes back to its last commit");
}

// MPI may notice first that a rank is lost, and knows no more of it.
Error Engine::with_culprit(const Error& error) {
  if (error.kind() != ErrorKind::transport && error.kind() != ErrorKind::peer) return error;
  const std::optional<std::string> verdict = alarm_.look_for_a_while();
  if (!verdict) return error;
  return {ErrorKind::peer, "rank " + std::to_string(rank_) + ": " + *verdict};
}

// What is on its way to others needs MPI's progress.
void Engine::finish_telling(Seconds most) {
  const Deadline deadline = Deadline::in(most);
  while (!alarm_.has_told() && !deadline.passed()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

// Nothing more is accepted, and whoever waits is told why.
void Engine::break_down(const Error& noticed) {
  const Error error = cause_of(noticed);
  std::vector<Arrival> arrived = std::move(taken_);  // what is left of them, if one brought the error
  {
    std::lock_guard lock(mutex_);
    if (!broken_) broken_ = error;
    for (Arrival& arrival : arrivals_) arrived.push_back(std::move(arrival));
    arrivals_.clear();
    in_flight_.clear();
  }
  for (Arrival& arrival : arrived)
    if (arrival.submission.handle) arrival.submission.handle->fail(error);
  for_each_not_started([&](Submission& submission) { submission.handle->fail(error); });
  for (auto& [id, set] : sets_)
    for (auto& [lane_id, lane] : set->lanes)
      for (Vote& vote : lane.votes) vote.handle->fail(error);
  for (Operation& operation : active_) {  // what was posted for it stays in the transport's hands
    operation.submission().handle->give_up_memory();
    operation.submission().handle->fail(error);
  }
  for (auto& [id, launch] : launches_) launch.submission.handle->fail(error);
  for (auto& [id, levels] : in_levels_) levels.submission.handle->fail(error);
  for (auto& [id, set] : sets_)
    for (Gpus::Waiting& one : set->gpus ? std::exchange(set->gpus->waiting, {}) : std::deque<Gpus::Waiting>())
      one.submission.handle->fail(error);
  abort_communicators(error);
  if (error.kind() == ErrorKind::gpu || error.kind() == ErrorKind::checksum) tell_of_failure();
  stop_ = true;
  ended_.notify_all();
  wake();
}

}  // namespace ringdp
