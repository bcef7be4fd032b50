// Who is to blame: asking, answering, and the verdict.
#include "engine/roll_call.h"

#include <algorithm>
#include <cstring>
#include <iostream>
#include <utility>

#include "engine/engine.h"

namespace ringdp {

namespace {

constexpr auto kStacks = std::chrono::milliseconds(150);  // that Python takes to write them

double seconds_since(Clock::time_point then) { return Seconds(Clock::now() - then).count(); }

// An answer takes the other engine's next look, and its stacks.
double patience_with_answers(double timeout) { return std::clamp(timeout / 4, 1.5, 4.0); }

std::vector<std::byte> bytes_of(const RollCallMessage& message, const std::vector<Seen>& seen) {
  std::vector<std::byte> data(sizeof message + seen.size() * sizeof(Seen));
  std::memcpy(data.data(), &message, sizeof message);
  if (!seen.empty()) std::memcpy(data.data() + sizeof message, seen.data(), seen.size() * sizeof(Seen));
  return data;
}

Question question_of(const Submission& s) {
  Question q;
  q.key = s.key;
  q.process_set = s.process_set;
  q.lane = std::max(s.lane, 0);
  q.kind = static_cast<uint8_t>(s.kind);
  return q;
}

}  // namespace

// --- who waits -------------------------------------------------------------------------------------------------------

// The longest wait of this rank; none, or not yet long.
std::optional<RollCall> Engine::longest_wait() {
  RollCall longest;
  longest.since = Clock::time_point::max();
  const auto consider = [&](Clock::time_point since, const Question& question, const std::string& what) {
    if (since >= longest.since) return;
    longest.since = since;
    longest.question = question;
    longest.what = what;
  };
  for_each_not_started([&](const Submission& s) {
    if (!s.handle->done()) consider(s.handle->made(), question_of(s), s.label());
  });
  for (const auto& [id, set] : sets_)
    for (const auto& [lane_id, lane] : set->lanes) {
      if (lane.votes.empty()) continue;
      Question q;
      q.process_set = id;
      q.lane = lane_id;
      q.kind = FlightRecord::kVote;
      q.sequence = lane.votes_begun - 1;
      consider(lane.votes.front().handle->made(), q, "the vote of plan " + std::to_string(lane_id));
    }
  for (const Operation& operation : active_) {
    if (operation.submission().handle->done() || operation.submission().absent) continue;
    Question q = question_of(operation.submission());
    q.sequence = operation.sequence();
    consider(operation.began(), q, operation.label());
  }
  for (const auto& [id, launch] : launches_)
    consider(launch.submission.handle->made(), question_of(launch.submission), launch.label());
  if (longest.since == Clock::time_point::max()) return std::nullopt;
  return longest;
}

// Looks whether it is time to ask, goes on with what has been asked, and answers others. Some times a second.
void Engine::look_at_roll_calls() {
  take_roll_call_messages();
  if (roll_call_) return go_on_with_roll_call();
  std::optional<RollCall> wait = longest_wait();
  if (!wait) {
    reported_ = 0;
    return;
  }
  const double waited = seconds_since(wait->since);
  const double first = std::min({options_.report_after, options_.timeout_if_gone, options_.timeout});
  if (wait->since != reported_since_) reported_since_ = wait->since, reported_ = 0;
  const bool at_the_end = waited >= options_.timeout && seconds_since(verdict_.at) > kFresh;
  if (waited < std::max(first, 2 * reported_) && !at_the_end) return;
  reported_ = waited;
  begin_roll_call(std::move(*wait));
}

// --- asking ----------------------------------------------------------------------------------------------------------

void Engine::begin_roll_call(RollCall&& wait) {
  const auto set = sets_.find(wait.question.process_set);
  if (set == sets_.end()) return;
  wait.ranks.insert(set->second->ranks.begin(), set->second->ranks.end());
  std::map<int, std::vector<int>> hosts;
  const std::vector<int>& groups = watch_->groups();
  for (const int rank : wait.ranks)
    if (static_cast<size_t>(rank) < groups.size() && groups[rank] != groups[rank_]) hosts[groups[rank]].push_back(rank);
  for (auto& [group, ranks] : hosts) wait.hosts.push_back({std::move(ranks), 0, {}, false});
  roll_call_ = std::move(wait);
  stacks_before_.clear();
  for (const Seen& seen : watch_->look(roll_call_->question)) ask_for_stack_of(seen, stacks_before_);
  go_on_with_roll_call();
}

// Of a rank of this host that has not come, and runs.
void Engine::ask_for_stack_of(const Seen& seen, std::map<int, uint64_t>& before) const {
  const FlightHead* head = watch_->head_of(seen.rank);
  if (head == nullptr || (seen.kind != Seen::computing && seen.kind != Seen::waiting)) return;
  before[seen.rank] = stack_bytes(*head);
  ask_for_stack(*head);
}

void Engine::go_on_with_roll_call() {
  RollCall& call = *roll_call_;
  const double patience = patience_with_answers(options_.timeout);
  bool complete = true;
  for (RollCall::Host& host : call.hosts) {
    if (host.answered) continue;
    if (host.asked > 0 && seconds_since(host.last) < patience / 2) {
      complete = false;
      continue;
    }
    if (host.asked == host.ranks.size() || seconds_since(call.began) > patience) continue;  // unreachable
    RollCallMessage message;
    message.question = call.question;
    send_roll_call(host.ranks[host.asked++], RollCalls::kQuestionTag, bytes_of(message, {}));
    host.last = Clock::now();
    complete = false;
  }
  if (!call.has_looked && Clock::now() - call.began >= kStacks) {
    call.has_looked = true;
    for (Seen& seen : with_stacks(watch_->look(call.question), stacks_before_)) call.seen[seen.rank] = seen;
  }
  if (complete && call.has_looked) end_roll_call();
}

// What the ranks have written since.
std::vector<Seen> Engine::with_stacks(std::vector<Seen> all, const std::map<int, uint64_t>& before) const {
  for (Seen& seen : all) {
    const auto bytes = before.find(seen.rank);
    if (bytes == before.end()) continue;
    const std::string stack = stack_since(*watch_->head_of(seen.rank), bytes->second);
    std::memcpy(seen.stack, stack.data(), std::min(stack.size(), sizeof seen.stack - 1));
  }
  return all;
}

void Engine::send_roll_call(int rank, int tag, std::vector<std::byte> data) {
  roll_calls_.sending.push_back({{}, std::move(data)});
  auto& one = roll_calls_.sending.back();
  one.request = process_set(0).control->send(rank, tag, one.data.data(), one.data.size());
}

// --- messages --------------------------------------------------------------------------------------------------------

void Engine::take_roll_call_messages() {
  const std::vector<int>& groups = watch_->groups();
  if (std::all_of(groups.begin(), groups.end(), [&](int group) { return group == groups[0]; })) return;
  Transport& control = *process_set(0).control;
  for (const int tag : {RollCalls::kQuestionTag, RollCalls::kAnswerTag}) {
    size_t bytes = 0;
    for (int from = 0; (from = control.arrived(tag, &bytes)) >= 0;) {
      if (bytes > sizeof(RollCallMessage) + RollCallMessage::kMostSeen * sizeof(Seen))
        fail(ErrorKind::internal, "rank ", control.name_of(from), " sent a roll call of ", bytes, " bytes");
      roll_calls_.receiving.push_back({from, tag, {}, std::vector<std::byte>(bytes)});
      auto& one = roll_calls_.receiving.back();
      one.request = control.receive(from, tag, one.data.data(), bytes);
    }
  }
  roll_calls_.sending.remove_if([&](RollCalls::Sending& one) { return control.test(one.request); });
  for (auto it = roll_calls_.receiving.begin(); it != roll_calls_.receiving.end();) {
    const auto one = it++;
    if (!control.test(one->request)) continue;
    take_roll_call_message(one->from, one->tag, one->data);
    roll_calls_.receiving.erase(one);
  }
  for (auto it = roll_calls_.answering.begin(); it != roll_calls_.answering.end();) {
    const auto one = it++;
    if (Clock::now() < one->due) continue;
    answer_roll_call(*one);
    roll_calls_.answering.erase(one);
  }
}

void Engine::take_roll_call_message(int from, int tag, const std::vector<std::byte>& data) {
  RollCallMessage message;
  if (data.size() < sizeof message) return;
  std::memcpy(&message, data.data(), sizeof message);
  if (message.magic != RollCallMessage::kMagic || message.version != RollCallMessage::kVersion) return;
  if (message.count > RollCallMessage::kMostSeen || data.size() != sizeof message + message.count * sizeof(Seen))
    return;
  if (tag == RollCalls::kQuestionTag) {
    RollCalls::Answering answer{from, message.question, Clock::now() + kStacks, {}};
    for (const Seen& seen : watch_->look(message.question)) ask_for_stack_of(seen, answer.stacks);
    roll_calls_.answering.push_back(std::move(answer));
    return;
  }
  if (!roll_call_ || std::memcmp(&message.question, &roll_call_->question, sizeof(Question)) != 0) return;  // late
  for (RollCall::Host& host : roll_call_->hosts)
    host.answered |= std::find(host.ranks.begin(), host.ranks.end(), from) != host.ranks.end();
  for (uint32_t i = 0; i < message.count; ++i) {
    Seen seen;
    std::memcpy(&seen, data.data() + sizeof message + i * sizeof seen, sizeof seen);
    seen.doing[sizeof seen.doing - 1] = seen.stack[sizeof seen.stack - 1] = seen.host[sizeof seen.host - 1] = '\0';
    if (seen.rank >= 0 && seen.rank < size_) roll_call_->seen[seen.rank] = seen;
  }
}

// Only those to blame are worth a message: of whom nothing is said, he has come.
void Engine::answer_roll_call(const RollCalls::Answering& answer) {
  std::vector<Seen> culprits;
  for (const Seen& seen : with_stacks(watch_->look(answer.question), answer.stacks))
    if (seen.is_culprit() && culprits.size() < RollCallMessage::kMostSeen) culprits.push_back(seen);
  RollCallMessage message;
  message.question = answer.question;
  message.count = static_cast<uint32_t>(culprits.size());
  send_roll_call(answer.to, RollCalls::kAnswerTag, bytes_of(message, culprits));
}

// --- the verdict -----------------------------------------------------------------------------------------------------

void Engine::end_roll_call() {
  const RollCall call = std::move(*roll_call_);
  roll_call_.reset();
  std::vector<Seen> culprits;
  int speaker = size_;  // the first of those who wait
  for (const int rank : call.ranks) {
    const auto found = call.seen.find(rank);
    const bool is_silent = std::any_of(call.hosts.begin(), call.hosts.end(), [rank](const RollCall::Host& host) {
      return !host.answered && std::find(host.ranks.begin(), host.ranks.end(), rank) != host.ranks.end();
    });
    if (found != call.seen.end() && found->second.is_culprit()) {
      culprits.push_back(found->second);
    } else if (is_silent) {
      culprits.emplace_back();
      culprits.back().rank = rank;
    } else {
      speaker = std::min(speaker, rank);
    }
  }
  verdict_ = Blame();
  verdict_.began = call.began;
  verdict_.at = Clock::now();
  std::string stacks;
  float patience = culprits.empty() ? 0 : 1e9f;
  for (const Seen& seen : culprits) {
    verdict_.is_gone |= seen.is_gone();
    verdict_.text += (verdict_.text.empty() ? "" : "; ") + in_words(seen);
    if (seen.stack[0] != '\0') stacks += "ringdp: rank " + std::to_string(seen.rank) + " is at\n" + text_of(seen.stack);
    patience = std::min(patience, seen.patience);
  }
  if (patience > 0)
    verdict_.patient_until = Clock::now() + std::chrono::duration_cast<Clock::duration>(Seconds(patience));
  patient_until_ = nanoseconds(verdict_.patient_until);
  if (culprits.empty())
    verdict_.text = "all ranks have come to " + call.what + ", but what they exchange does not get through";
  verdict_.is_told = speaker == rank_;
  if (!verdict_.is_told) return;
  std::string text = "ringdp: rank " + std::to_string(rank_) + " waits in " + call.what + " for " +
                     std::to_string(static_cast<int>(seconds_since(call.since) + 0.5)) + " s: " + verdict_.text + "\n" +
                     stacks;
  std::cerr << text << std::flush;
}

// A wait that began then is to end now. Before it does, it is found out why.
bool Engine::is_over(Clock::time_point since) const {
  const double waited = seconds_since(since);
  if (waited < std::min(options_.timeout, options_.timeout_if_gone)) return false;
  // The rank that speaks is done before any of the others ends the job.
  constexpr double kToSpeak = 0.25;
  const double known_for = seconds_since(verdict_.at);
  const bool is_known = verdict_.began > since && known_for < kFresh;
  if (is_known && !verdict_.is_told && known_for < kToSpeak) return false;
  if (is_known && verdict_.is_gone && waited >= options_.timeout_if_gone) return true;  // no patience brings it back
  const int64_t patient_until = watch_->flight().head().patient_until.load();
  if (patient_until > nanoseconds(Clock::now()) || verdict_.patient_until > Clock::now()) return false;
  if (waited < options_.timeout) return false;
  return is_known || waited > options_.timeout + 2 * patience_with_answers(options_.timeout);
}

// Why this rank waits no more, with who is to blame.
Error Engine::late(const std::string& text) {
  if (verdict_.text.empty()) return {ErrorKind::deadline, "rank " + std::to_string(rank_) + ": " + text};
  watch_->flight().blame(verdict_.text);
  return {ErrorKind::deadline, "rank " + std::to_string(rank_) + ": " + text + ": " + verdict_.text};
}

}  // namespace ringdp
