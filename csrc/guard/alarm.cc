#include "guard/alarm.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <thread>
#include <utility>

#include "base/error.h"

namespace ringdp {

namespace {

constexpr auto kBetweenLooks = std::chrono::milliseconds(20);
constexpr Seconds kLauncherTakes(3);                        // at the most, to end a job
constexpr auto kOnItsWay = std::chrono::milliseconds(250);  // a verdict, at the most

}  // namespace

Alarm::Alarm(Transport& control, Watch& watch)
    : control_(control),
      watch_(watch),
      rank_(control.rank()),
      dispatches_(control, {Dispatches::alarm}, sizeof(Message)) {}

std::optional<std::string> Alarm::look() {
  if (end_comes_) return end_comes_->passed() ? std::optional(watch_.verdict()) : std::nullopt;
  if (verdict_) return verdict_;
  if (watch_.anybody_is_dead()) see(watch_.dead());
  if (verdict_ || watch_.sees_all() || Clock::now() - last_look_ < kBetweenLooks) return verdict_;
  last_look_ = Clock::now();
  listen();
  return verdict_;
}

std::optional<std::string> Alarm::look_for_a_while() {
  const int lost = control_.lost();
  const bool somebody_tells = lost < 0 ? !watch_.sees_all() : watch_.has_neighbours(lost);
  const auto end = Clock::now() + (somebody_tells ? kOnItsWay : Clock::duration(0));
  do {
    try {
      last_look_ = {};
      if (look() || end_comes_) break;
    } catch (const Error&) {  // of the same that has failed already
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  } while (Clock::now() < end);
  while (end_comes_ && !end_comes_->passed()) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  if (!end_comes_ && !verdict_ && lost >= 0) {
    verdict_ =
        "rank " + std::to_string(lost) + " (host " + watch_.host_of(lost) + ") is lost: its connection has ended";
    watch_.hear(*verdict_, true);
  }
  return end_comes_ ? watch_.verdict() : verdict_;
}

// The watch's thread is about to say what it has seen: the recorder, and all others, are told the same.
void Alarm::see(const std::vector<int>& dead) {
  if (dead.empty()) return;
  if (death_seen_ == Clock::time_point()) death_seen_ = Clock::now();
  if (!watch_.has_fault() && Clock::now() - death_seen_ < kOnItsWay) return;
  const std::string verdict = watch_.has_fault() ? watch_.verdict() : in_words(watch_.look_at_one(dead[0], Question()));
  const bool is_exception = watch_.head_of(dead[0])->failed_at.load() != 0;
  tell(listeners(rank_, watch_.groups(), dead), verdict, is_exception);
  if (is_exception)
    end_comes_ = Deadline::in(kLauncherTakes);
  else
    verdict_ = verdict;
}

void Alarm::listen() {
  for (const auto& [from, tag, data] : dispatches_.take()) {
    const std::optional<Message> message = parse(data);
    if (!message) continue;
    const std::string verdict = text_of(message->verdict);
    watch_.hear(verdict, !message->is_exception);
    if (message->is_exception)
      end_comes_ = Deadline::in(kLauncherTakes);
    else if (!verdict_)
      verdict_ = verdict;
  }
}

void Alarm::tell_of_exception(const std::string& verdict) {
  if (verdict_ || end_comes_ || watch_.sees_all()) return;
  std::vector<int> others;
  for (size_t r = 0; r < watch_.groups().size(); ++r)
    if (const int other = static_cast<int>(r); other != rank_ && watch_.is_neighbour(other)) others.push_back(other);
  tell(listeners(rank_, watch_.groups(), others), verdict, true);
}

void Alarm::tell(const std::vector<int>& listeners, const std::string& verdict, bool is_exception) {
  Message message;
  message.is_exception = is_exception;
  std::snprintf(message.verdict, sizeof message.verdict, "%s", verdict.c_str());
  std::vector<std::byte> data(sizeof message);
  std::memcpy(data.data(), &message, sizeof message);
  for (const int rank : listeners) dispatches_.send(rank, Dispatches::alarm, data);
}

bool Alarm::has_told() { return dispatches_.all_sent(); }

std::vector<int> Alarm::listeners(int rank, const std::vector<int>& groups, const std::vector<int>& silent) {
  const auto group_of = [&](size_t r) { return groups[r]; };
  std::vector<int> survivors;
  std::map<int, std::vector<int>> elsewhere;
  for (size_t r = 0; r < groups.size(); ++r) {
    const int other = static_cast<int>(r);
    if (group_of(r) != group_of(static_cast<size_t>(rank)))
      elsewhere[group_of(r)].push_back(other);
    else if (std::find(silent.begin(), silent.end(), other) == silent.end())
      survivors.push_back(other);
  }
  const size_t shares = survivors.size();
  const auto mine = static_cast<size_t>(std::find(survivors.begin(), survivors.end(), rank) - survivors.begin());
  std::vector<int> told;
  for (const auto& [group, ranks] : elsewhere)
    for (size_t place = 0; place < ranks.size(); ++place)
      if (place % shares == mine || place % shares == (mine + 1) % shares) told.push_back(ranks[place]);
  return told;
}

std::optional<Alarm::Message> Alarm::parse(const std::vector<std::byte>& data) {
  Message message;
  if (data.size() != sizeof message) return std::nullopt;
  std::memcpy(&message, data.data(), sizeof message);
  if (message.magic != Message::kMagic || message.version != Message::kVersion) return std::nullopt;
  message.verdict[sizeof message.verdict - 1] = '\0';
  return message;
}

}  // namespace ringdp
