#include "agree/letters.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace ringdp {

namespace {

constexpr size_t kSpare = 64;

}  // namespace

bool Letters::Meeting::poisoned() const {
  return std::any_of(from.begin(), from.end(), [](const Received& r) { return r.letter.flags & Letter::kPoison; });
}

bool Letters::Meeting::agreed() const {
  return !poisoned() && std::all_of(from.begin(), from.end(), [this](const Received& r) {
    return r.letter.signature == from[0].letter.signature;
  });
}

Letters::Letters(std::shared_ptr<Host> host, std::vector<int> members, int me, const std::vector<std::byte*>& parts,
                 std::vector<int> world_ranks)
    : host_(std::move(host)),
      members_(std::move(members)),
      world_ranks_(std::move(world_ranks)),
      me_(me),
      has_left_(members_.size(), false) {
  if (members_.size() > 1) mail_ = std::make_unique<Mail>(me, parts);
}

Letters::Meeting& Letters::meeting_about(const Subject& subject) {
  auto found = meetings_.find(subject);
  if (found != meetings_.end()) return *found->second;
  if (spare_.empty()) {
    found = meetings_.emplace(subject, std::make_unique<Meeting>()).first;
    found->second->from.resize(members_.size());
  } else {
    spare_.back().key() = subject;
    found = meetings_.insert(std::move(spare_.back())).position;
    spare_.pop_back();
  }
  found->second->missing = static_cast<int>(members_.size());
  return *found->second;
}

Letters::Meeting& Letters::come(const Letter& letter, const void* payload, uint64_t token) {
  Meeting& meeting = meeting_about(subject_of(letter));
  RINGDP_CHECK(!meeting.from[me_].here, "this rank has come to this meeting before");
  meeting.token = token;
  if (mail_) {
    mail_->post(letter, payload);
    ring();
  }
  take(meeting, me_, letter, static_cast<const std::byte*>(payload));
  return meeting;
}

void Letters::receive(int member, const Letter& letter, const std::byte* payload) {
  if (letter.topic == leaving) {
    has_left_[member] = true;
    ++left_count_;
    if (first_left_ < 0) first_left_ = letter.ticket ? static_cast<int>(letter.ticket - 1) : members_[member];
    return;
  }
  Meeting& meeting = meeting_about(subject_of(letter));
  if (!meeting.from[member].here) return take(meeting, member, letter, payload);
  Received next;
  next.letter = letter;
  next.payload.assign(payload, payload + letter.bytes);
  meeting.later.emplace_back(member, std::move(next));
}

void Letters::take(Meeting& meeting, int member, const Letter& letter, const std::byte* payload) {
  Received& received = meeting.from[member];
  received.here = true;
  received.letter = letter;
  received.payload.assign(payload, payload + letter.bytes);
  if (--meeting.missing == 0) complete_.push_back(&meeting);
}

void Letters::close(Meeting& meeting) {
  Meetings::node_type node = meetings_.extract(subject_of(meeting.from[me_].letter));
  RINGDP_CHECK(!node.empty());
  // Who came last may have seen that it is complete, and close it, before poll() has told of it.
  if (!complete_.empty()) complete_.erase(std::remove(complete_.begin(), complete_.end(), &meeting), complete_.end());
  const auto later = std::exchange(meeting.later, {});
  for (Received& received : meeting.from) received.here = false;
  if (spare_.size() < kSpare) spare_.push_back(std::move(node));
  for (const auto& [member, next] : later) receive(member, next.letter, next.payload.data());
}

void Letters::leave() {
  if (!mail_) return;
  Letter letter;
  letter.topic = leaving;
  letter.ticket = static_cast<uint64_t>(first_left_ + 1);
  mail_->post(letter, nullptr);
  ring();
}

bool Letters::has_left(int rank) const {
  for (size_t m = 0; m < members_.size(); ++m)
    if (world_ranks_[m] == rank) return has_left_[m];
  return true;
}

bool Letters::lacks_one_that_left(const Meeting& meeting) const {
  for (size_t m = 0; m < members_.size(); ++m)
    if (has_left_[m] && !meeting.from[m].here) return true;
  return false;
}

void Letters::ring() const {
  for (size_t m = 0; m < members_.size(); ++m)
    if (static_cast<int>(m) != me_) host_->head(world_ranks_[m]).bell.ring();
}

}  // namespace ringdp
