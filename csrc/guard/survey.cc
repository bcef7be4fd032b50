#include "guard/survey.h"

#include <signal.h>

#include <algorithm>
#include <cstdio>
#include <iomanip>
#include <optional>
#include <sstream>

#include "submit/submission.h"

namespace ringdp {

namespace {

// How long an engine may be in one turn before it counts as stuck: turns do not block, but a machine may be busy.
constexpr double kLongTurn = 5;

constexpr double kMoment = 10;

const char* kind_in_words(uint8_t kind) {
  if (kind == FlightRecord::kVote) return "the vote of";
  return kind <= static_cast<uint8_t>(OpKind::join) ? name_of(static_cast<OpKind>(kind)) : "an operation";
}

std::string label(const FlightRecord& record) {
  const std::string name = text_of(record.name);
  if (record.kind == FlightRecord::kVote || record.lane > 0)
    return (record.kind == FlightRecord::kVote ? "the vote of " : "") + name;
  return std::string(kind_in_words(record.kind)) + " '" + name + "'";
}

const char* stage_in_words(uint8_t stage) {
  return stage <= static_cast<uint8_t>(Stage::done) ? name_of(static_cast<Stage>(stage)) : "FAILED";
}

// One that has been given up a moment ago was waited for as well: its rank is not to blame.
bool has_ended(const FlightRecord& record) {
  const uint8_t stage = record.stage.load(std::memory_order_relaxed);
  if (stage != FlightRecord::kFailed) return stage >= static_cast<uint8_t>(Stage::done);
  return seconds_between(record.changed.load(std::memory_order_relaxed), nanoseconds(Clock::now())) > kMoment;
}

Question question_of(const FlightRecord& record) {
  Question q;
  q.key = record.key;
  q.sequence = record.sequence;
  q.process_set = record.process_set;
  q.lane = record.lane;
  q.kind = record.kind;
  return q;
}

// Goes through a rank's records, the newest first.
template <class Act>
void for_each_newest_first(const FlightHead& head, const FlightRecord* records, const Act& act) {
  const uint64_t last = head.submitted.load(std::memory_order_acquire);
  const uint64_t most = std::min<uint64_t>(last, FlightHead::kRecords);
  for (uint64_t number = last; number > last - most; --number) {
    const FlightRecord& record = records[(number - 1) % FlightHead::kRecords];
    if (record.number.load(std::memory_order_acquire) == number && !act(record)) return;
  }
}

// Whether this record tells if its rank has come to what is asked about.
bool is_about(const FlightRecord& r, const Question& q) {
  if (r.process_set != q.process_set || r.lane != q.lane) return false;
  if (q.lane == 0 && q.kind != FlightRecord::kVote) return r.key == q.key;
  return (r.kind == FlightRecord::kVote) == (q.kind == FlightRecord::kVote);
}

// In a lane all ranks come to the same in the same order. Of a name, the latest is the one, if it has not ended: a rank
// comes to the next of the same name when the one before has ended for all.
bool has_come(const FlightRecord& r, const Question& q, bool has_ended) {
  return q.lane > 0 || q.kind == FlightRecord::kVote ? r.sequence >= q.sequence : !has_ended;
}

void say(Seen& seen, const std::string& text) { std::snprintf(seen.doing, sizeof seen.doing, "%s", text.c_str()); }

std::string seconds(double s) {
  std::ostringstream text;
  text.precision(s < 10 ? 2 : 4);
  text << std::fixed << std::setprecision(1) << s << " s";
  return text.str();
}

std::string in_words(const Seen& seen, const std::string& ranks);

}  // namespace

Seen look_at(const FlightHead& head, const FlightRecord* records, const Question& q) {
  Seen seen;
  const int64_t now = nanoseconds(Clock::now());
  const auto since = [now](int64_t then) { return std::max(0.0, seconds_between(then, now)); };
  seen.rank = head.rank;
  seen.pid = head.pid;
  seen.step = head.step.load(std::memory_order_relaxed);
  seen.signal = static_cast<int16_t>(head.signal.load());
  std::snprintf(seen.host, sizeof seen.host, "%s", text_of(head.host).c_str());
  if (const int64_t until = head.patient_until.load(); until > now) seen.patience = float(seconds_between(now, until));

  // The oldest that has not ended, the last of all, and the last that tells of what is asked about. The rank goes on
  // meanwhile: each is looked at once, lest it seems to wait for something else than what has just ended.
  std::string open, last;
  int64_t open_since = 0, last_change = 0;
  std::optional<bool> come;
  for_each_newest_first(head, records, [&](const FlightRecord& r) {
    if (last_change == 0) {
      last_change = r.changed.load(std::memory_order_relaxed);
      last = label(r) + " (" + stage_in_words(r.stage.load(std::memory_order_relaxed)) + ")";
    }
    const bool ended = has_ended(r);
    if (!come && is_about(r, q)) come = has_come(r, q, ended);
    if (!ended) {
      open = label(r) + " (" + stage_in_words(r.stage.load(std::memory_order_relaxed)) + ")";
      open_since = r.submitted;
      seen.waits_for = question_of(r);
    }
    return true;
  });
  if (last_change != 0) seen.idle = float(since(last_change));

  std::string doing;
  for (const FlightCall& call : head.calls)
    if (const int64_t began = call.since.load(); began != 0)
      doing = "in " + text_of(call.what) + " for " + seconds(since(began));
  if (doing.empty() && !open.empty()) doing = "in " + open + " for " + seconds(since(open_since));
  if (doing.empty()) doing = last.empty() ? "it has submitted nothing yet" : "the last it came to was " + last;
  say(seen, doing);

  // Its number means another process here, or none, where process namespaces are not shared.
  static const uint64_t here = pid_space();
  const bool is_known = here != 0 && here == head.pid_space;
  const ProcessState process = is_known ? state_of_process(head.pid) : ProcessState{'?', head.born};
  seen.state = process.state;
  const Standing standing = head.standing.load();
  const int64_t turn = head.turn_since.load();
  const bool is_gone = process.state == 0 || process.state == 'Z' || process.state == 'X' || process.born != head.born;
  if (standing == Standing::ended || (standing == Standing::leaving && is_gone))
    seen.kind = Seen::left;
  else if (is_gone || seen.signal != 0)
    seen.kind = Seen::dead;
  else if (process.state == 'T' || process.state == 't')
    seen.kind = Seen::stopped;
  else if (turn != 0 && since(turn) > kLongTurn)
    seen.kind = Seen::stuck;
  else if (standing == Standing::leaving)
    seen.kind = Seen::left;
  else if (come.value_or(false))
    seen.kind = Seen::come;
  else
    seen.kind = open.empty() ? Seen::computing : Seen::waiting;
  return seen;
}

std::string in_words(const std::vector<Seen>& all) {
  std::string text;
  for (size_t i = 0; i < all.size(); ++i) {
    Seen seen = all[i];
    std::string ranks = std::to_string(seen.rank);
    const auto goes_along = [&](const Seen& next) {
      return seen.kind == Seen::unreachable && next.kind == seen.kind && text_of(next.host) == text_of(seen.host);
    };
    for (; i + 1 < all.size() && goes_along(all[i + 1]); ++i) ranks += ", " + std::to_string(all[i + 1].rank);
    text += (text.empty() ? "" : "; ") + in_words(seen, ranks);
  }
  return text;
}

std::string in_words(const Seen& seen) { return in_words(seen, std::to_string(seen.rank)); }

namespace {

std::string in_words(const Seen& seen, const std::string& ranks) {
  const bool are_several = ranks.find(',') != std::string::npos;
  std::ostringstream text;
  text << (are_several ? "ranks " : "rank ") << ranks;
  if (seen.pid != 0)
    text << " (host " << text_of(seen.host) << ", process " << seen.pid << ")";
  else if (seen.host[0] != '\0')
    text << " (host " << text_of(seen.host) << ")";
  const std::string doing = text_of(seen.doing);
  switch (seen.kind) {
    case Seen::come:
      text << " has come";
      break;
    case Seen::computing:
      text << " is alive (state " << seen.state << ") and has not come; for " << seconds(seen.idle)
           << " it has come to nothing";
      break;
    case Seen::waiting:
      text << " waits for something else";
      break;
    case Seen::left:
      text << " has left the job";
      break;
    case Seen::stopped:
      text << " is stopped (state " << seen.state << ": SIGSTOP, a debugger or a paused machine)";
      break;
    case Seen::dead:
      text << " is dead";
      if (seen.signal != 0)
        text << " (signal " << seen.signal << ", " << strsignal(seen.signal) << ")";
      else
        text << " (killed from outside, or ended without a word)";
      break;
    case Seen::unreachable:
      text << (are_several ? " do" : " does")
           << " not answer: the host or the link to it is down, or all ranks there are stopped";
      break;
    case Seen::stuck:
      text << " is stuck in a call of its engine";
      break;
  }
  if (!doing.empty() && seen.kind != Seen::come) text << "; " << doing;
  if (!doing.empty() && seen.kind != Seen::come && seen.kind != Seen::unreachable) text << ", step " << seen.step;
  return text.str();
}

}  // namespace

// --- stacks ----------------------------------------------------------------------------------------------------------

uint64_t stack_bytes(const FlightHead& head) { return strnlen(stacks_of(head), FlightView::kStacks); }

void ask_for_stack(const FlightHead& head) {
  if (head.pid > 0 && head.stack_signal >= SIGRTMIN && head.stack_signal <= SIGRTMAX) kill(head.pid, head.stack_signal);
}

std::string stack_since(const FlightHead& head, uint64_t bytes_before) {
  const uint64_t now = stack_bytes(head);
  if (now < bytes_before) bytes_before = 0;  // room has been made
  return std::string(stacks_of(head) + bytes_before, now - bytes_before);
}

}  // namespace ringdp
