#include "guard/roll_call.h"

#include <algorithm>
#include <cstring>
#include <iostream>
#include <utility>

namespace ringdp {

namespace {

constexpr auto kStacks = std::chrono::milliseconds(150);  // that Python takes to write them

double seconds_since(Clock::time_point then) { return Seconds(Clock::now() - then).count(); }

}  // namespace

RollCall::RollCall(const Options& options, Transport& control, Watch& watch)
    : options_(options),
      watch_(watch),
      rank_(control.rank()),
      size_(control.size()),
      dispatches_(control, {Dispatches::question, Dispatches::answer},
                  sizeof(Message) + Message::kMostSeen * sizeof(Seen)) {}

// An answer takes the other engine's next look, and its stacks.
double RollCall::patience() const { return std::clamp(options_.timeout / 4, 1.5, 4.0); }

bool RollCall::Host::has(int rank) const { return std::find(ranks.begin(), ranks.end(), rank) != ranks.end(); }

void RollCall::look(const Longest& longest) {
  if (!watch_.sees_all()) take_messages();
  if (call_) return go_on();
  std::optional<Wait> wait = longest();
  if (!wait) {
    reported_ = 0;
    return;
  }
  const double waited = watch_.seconds_since(wait->since);
  const double first = std::min({options_.report_after, options_.timeout_if_gone, options_.timeout});
  if (wait->since != reported_since_) reported_since_ = wait->since, reported_ = 0;
  const bool is_stale = seconds_since(verdict_.at) > kFresh || verdict_.asked_at < watch_.continued();
  const bool at_the_end = waited >= options_.timeout && is_stale;
  if (waited < std::max(first, 2 * reported_) && !at_the_end) return;
  reported_ = waited;
  begin(std::move(*wait));
}

// --- asking ----------------------------------------------------------------------------------------------------------

void RollCall::begin(Wait wait, std::string missed) {
  call_.emplace();
  call_->wait = std::move(wait);
  call_->missed = std::move(missed);
  call_->began = Clock::now();
  std::map<int, std::vector<int>> hosts;
  for (const int rank : call_->wait.ranks)
    if (!watch_.is_neighbour(rank)) hosts[watch_.group_of(rank)].push_back(rank);
  for (auto& [group, ranks] : hosts) call_->hosts.push_back({std::move(ranks), 0, {}, false});
  call_->stacks = ask_for_stacks(call_->wait.question);
  go_on();
}

void RollCall::go_on() {
  bool complete = true;
  for (Host& host : call_->hosts) {
    if (host.answered) continue;
    const bool waits = host.asked > 0 && seconds_since(host.last) < patience() / 2;
    if (!waits && (host.asked == host.ranks.size() || seconds_since(call_->began) > patience()))
      continue;  // unreachable
    complete = false;
    if (!waits) ask(host);
  }
  if (!call_->has_looked && Clock::now() - call_->began >= kStacks) {
    call_->has_looked = true;
    for (Seen& seen : look_at_host(call_->wait.question, call_->stacks)) call_->seen[seen.rank] = seen;
  }
  if (complete && call_->has_looked) end();
}

void RollCall::ask(Host& host) {
  dispatches_.send(host.ranks[host.asked++], Dispatches::question, bytes_of(call_->wait.question, {}, 0));
  host.last = Clock::now();
}

// Those of ranks of this host that have not come, and run.
RollCall::Stacks RollCall::ask_for_stacks(const Question& question) const {
  Stacks before;
  for (const Seen& seen : watch_.look(question)) {
    const FlightHead* head = watch_.head_of(seen.rank);
    if (head == nullptr || (seen.kind != Seen::computing && seen.kind != Seen::waiting)) continue;
    before[seen.rank] = stack_bytes(*head);
    ask_for_stack(*head);
  }
  return before;
}

// With what they have written since.
std::vector<Seen> RollCall::look_at_host(const Question& question, const Stacks& stacks) const {
  std::vector<Seen> all = watch_.look(question);
  for (Seen& seen : all) {
    const auto bytes = stacks.find(seen.rank);
    if (bytes == stacks.end()) continue;
    const std::string stack = stack_since(*watch_.head_of(seen.rank), bytes->second);
    std::memcpy(seen.stack, stack.data(), std::min(stack.size(), sizeof seen.stack - 1));
  }
  return all;
}

// --- messages --------------------------------------------------------------------------------------------------------

std::vector<std::byte> RollCall::bytes_of(const Question& question, const std::vector<Seen>& seen, size_t absent) {
  Message message;
  message.question = question;
  message.count = static_cast<uint32_t>(seen.size());
  message.absent = static_cast<uint32_t>(absent);
  std::vector<std::byte> data(sizeof message + seen.size() * sizeof(Seen));
  std::memcpy(data.data(), &message, sizeof message);
  if (!seen.empty()) std::memcpy(data.data() + sizeof message, seen.data(), seen.size() * sizeof(Seen));
  return data;
}

void RollCall::take_messages() {
  for (const auto& [from, tag, data] : dispatches_.take()) {
    Message message;
    if (data.size() < sizeof message) continue;
    std::memcpy(&message, data.data(), sizeof message);
    if (message.magic != Message::kMagic || message.version != Message::kVersion) continue;
    if (message.count > Message::kMostSeen || data.size() != sizeof message + message.count * sizeof(Seen)) continue;
    if (tag == Dispatches::question)
      take_question(from, message.question);
    else
      take_answer(from, message, data.data() + sizeof message);
  }
  for (auto it = answering_.begin(); it != answering_.end();) {
    const auto one = it++;
    if (Clock::now() < one->due) continue;
    answer(*one);
    answering_.erase(one);
  }
}

void RollCall::take_question(int from, const Question& question) {
  answering_.push_back({from, question, Clock::now() + kStacks, ask_for_stacks(question)});
}

// Only those to blame are worth a message: of whom nothing is said, he has come.
void RollCall::answer(const Answering& one) {
  std::vector<Seen> culprits;
  size_t absent = 0;
  for (const Seen& seen : look_at_host(one.question, one.stacks)) {
    absent += seen.is_culprit();
    if (seen.is_culprit() && culprits.size() < Message::kMostSeen) culprits.push_back(seen);
  }
  dispatches_.send(one.to, Dispatches::answer, bytes_of(one.question, culprits, absent));
}

void RollCall::take_answer(int from, const Message& message, const std::byte* data) {
  if (!call_ || std::memcmp(&message.question, &call_->wait.question, sizeof(Question)) != 0) return;  // late
  for (Host& host : call_->hosts) {
    if (host.answered || !host.has(from)) continue;
    host.answered = true;
    call_->not_named += message.absent - std::min(message.absent, message.count);
  }
  for (uint32_t i = 0; i < message.count; ++i) {
    Seen seen;
    std::memcpy(&seen, data + i * sizeof seen, sizeof seen);
    seen.doing[sizeof seen.doing - 1] = seen.stack[sizeof seen.stack - 1] = seen.host[sizeof seen.host - 1] = '\0';
    if (seen.rank >= 0 && seen.rank < size_) call_->seen[seen.rank] = seen;
  }
}

// --- the verdict -----------------------------------------------------------------------------------------------------

void RollCall::end() {
  const Call call = std::move(*call_);
  call_.reset();
  std::vector<Seen> culprits;
  int speaker = size_;  // the first of those who wait
  for (const int rank : call.wait.ranks) {
    const auto found = call.seen.find(rank);
    const bool is_silent = std::any_of(call.hosts.begin(), call.hosts.end(),
                                       [rank](const Host& host) { return !host.answered && host.has(rank); });
    if (found != call.seen.end() && found->second.is_culprit())
      culprits.push_back(found->second);
    else if (is_silent)
      culprits.push_back(watch_.unreachable(rank));
    else
      speaker = std::min(speaker, rank);
  }
  if (asks_for_others(call, culprits)) return;
  // Who waits for something else does so because of those that are gone, or is ahead. Who has left had given up those that
  // have not come, or are gone: where a rank leaves by itself, nobody waits until a roll is called.
  const auto is_any = [&](auto is) { return std::any_of(culprits.begin(), culprits.end(), is); };
  const bool some_are_gone = is_any([](const Seen& seen) { return seen.is_gone(); });
  const bool some_are_late = is_any([](const Seen& seen) { return seen.kind == Seen::computing; });
  culprits.erase(std::remove_if(culprits.begin(), culprits.end(),
                                [&](const Seen& seen) {
                                  return (seen.kind == Seen::waiting && some_are_gone) ||
                                         (seen.kind == Seen::left && (some_are_gone || some_are_late));
                                }),
                 culprits.end());
  verdict_ = Verdict();
  verdict_.asked_at = call.began;
  verdict_.at = Clock::now();
  verdict_.text = in_words(culprits);
  verdict_.missed = call.missed;
  float patience = culprits.empty() ? 0 : 1e9f;
  for (const Seen& seen : culprits) {
    verdict_.is_gone |= seen.is_gone();
    patience = std::min(patience, seen.patience);
  }
  if (patience > 0)
    verdict_.patient_until = Clock::now() + std::chrono::duration_cast<Clock::duration>(Seconds(patience));
  patient_until_ = nanoseconds(verdict_.patient_until);
  if (culprits.empty())
    verdict_.text = "all ranks have come to " + call.wait.what + ", but what they exchange does not get through";
  const std::string before = said_by_the_dead(culprits);
  if (!before.empty()) verdict_.text = before;
  verdict_.is_told = speaker == rank_ && before.empty();
  if (verdict_.is_told) tell(call, culprits);
}

// Whoever ends the job dies, too, while others still ask: what it has blamed counts.
std::string RollCall::said_by_the_dead(const std::vector<Seen>& culprits) const {
  for (const Seen& seen : culprits) {
    if (seen.kind != Seen::dead) continue;
    if (watch_.has_fault()) return watch_.verdict();
    const FlightHead* head = watch_.head_of(seen.rank);
    if (head != nullptr && blames_somebody(*head)) return text_of(head->verdict);
  }
  return "";
}

// All others wait, for something to which this rank has not come either. One side has left out what the other waits for: the
// smaller; of two that are as large, the one that is ahead in a plan, as each step comes to that anyway. If it is this
// rank's side, what the others ask is asked here, too, so that all blame the same ranks.
bool RollCall::asks_for_others(const Call& call, const std::vector<Seen>& absent) {
  const auto waits = [](const Seen& seen) { return seen.kind == Seen::waiting; };
  if (!call.missed.empty() || absent.empty() || !std::all_of(absent.begin(), absent.end(), waits)) return false;
  const auto together = [&](const Seen& one) {
    return std::count_if(absent.begin(), absent.end(), [&](const Seen& other) {
      return std::memcmp(&one.waits_for, &other.waits_for, sizeof(Question)) == 0;
    });
  };
  const Seen& other = *std::max_element(absent.begin(), absent.end(),
                                        [&](const Seen& a, const Seen& b) { return together(a) < together(b); });
  const auto theirs = together(other);
  const auto ours = std::ptrdiff_t(call.wait.ranks.size()) - std::ptrdiff_t(absent.size() + call.not_named);
  const auto is_planned = [](const Question& q) { return q.lane > 0 || q.kind == FlightRecord::kVote; };
  if (other.waits_for.process_set != call.wait.question.process_set) return false;
  const bool are_ahead = is_planned(call.wait.question) && !is_planned(other.waits_for);
  if (theirs < ours || (theirs == ours && !are_ahead)) return false;
  const Seen me = look_at(watch_.flight().head(), watch_.flight().records(), other.waits_for);
  if (me.kind == Seen::come) return false;
  Wait wait = call.wait;
  wait.question = other.waits_for;
  begin(std::move(wait), "rank " + std::to_string(other.rank) + " is " + text_of(other.doing));
  return true;
}

void RollCall::tell(const Call& call, const std::vector<Seen>& culprits) const {
  const int waited = static_cast<int>(watch_.seconds_since(call.wait.since) + 0.5);
  std::string text = "ringdp: rank " + std::to_string(rank_) + " waits in " + call.wait.what + " for " +
                     std::to_string(waited) + " s: " + verdict_.text + "\n";
  for (const Seen& seen : culprits)
    if (seen.stack[0] != '\0') text += "ringdp: rank " + std::to_string(seen.rank) + " is at\n" + text_of(seen.stack);
  std::cerr << text << std::flush;
}

bool RollCall::is_over(Clock::time_point since) const {
  const double waited = watch_.seconds_since(since);
  if (waited < std::min(options_.timeout, options_.timeout_if_gone)) return false;
  // The rank that speaks is done before any of the others ends the job.
  constexpr double kToSpeak = 0.25;
  const double known_for = seconds_since(verdict_.at);
  const bool is_known = verdict_.asked_at > std::max(since, watch_.continued()) && known_for < kFresh;
  if (is_known && !verdict_.is_told && known_for < kToSpeak) return false;
  if (is_known && verdict_.is_gone && waited >= options_.timeout_if_gone) return true;  // no patience brings it back
  const int64_t patient_until = watch_.flight().head().patient_until.load();
  if (patient_until > nanoseconds(Clock::now()) || verdict_.patient_until > Clock::now()) return false;
  if (waited < options_.timeout) return false;
  if (seconds_since(watch_.continued()) < 2 * patience()) return is_known;
  return is_known || waited > options_.timeout + 2 * patience();
}

Error RollCall::late(const std::string& text) {
  const std::string mine = "rank " + std::to_string(rank_) + ": " + text;
  if (verdict_.text.empty()) return {ErrorKind::deadline, mine};
  watch_.flight().blame(verdict_.text);
  const std::string missed = verdict_.missed.empty() ? "" : verdict_.missed + ", to which this rank has not come: ";
  return {ErrorKind::deadline, mine + ": " + missed + verdict_.text};
}

}  // namespace ringdp
