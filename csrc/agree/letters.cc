#include "agree/letters.h"

#include <algorithm>

#include "base/check.h"

namespace ringdp {

Letters::Letters(std::shared_ptr<Host> host, std::vector<int> members, std::vector<int> places, int me,
                 const std::vector<std::byte*>& parts)
    : Meetings(members[static_cast<size_t>(me)]),
      host_(std::move(host)),
      members_(std::move(members)),
      places_(std::move(places)),
      me_(me),
      has_left_(members_.size(), false) {
  if (members_.size() > 1) mail_ = std::make_unique<Mail>(me, parts, places_);
}

Letters::Gathering& Letters::at(const Subject& subject) {
  Gathering& meeting = meetings_.at(subject);
  if (meeting.missing == 0 && !meeting.complete) {  // as new
    meeting.from.resize(members_.size());
    meeting.missing = static_cast<int>(members_.size());
  }
  return meeting;
}

void Letters::tell(const Note& note, const void* payload) {
  if (!mail_) return;
  mail_->post(note, payload);
  ring();
}

Meetings::Meeting& Letters::come(const Note& note, const void* payload, uint64_t token) {
  Gathering& meeting = at(subject_of(note));
  RINGDP_CHECK(!meeting.here, "this rank has come to this meeting before");
  meeting.token = token;
  tell(note, payload);
  take(meeting, me_, note, static_cast<const std::byte*>(payload));
  return meeting;
}

void Letters::come_with_mark(const Subject& subject, Gathering& meeting) {
  meeting.for_nobody = true;
  const Note note = mark(subject);
  tell(note, nullptr);
  take(meeting, me_, note, nullptr);
}

bool Letters::poll() {
  return mail_ && mail_->poll([this](int member, const Note& note, const void* payload) {
    receive(member, note, static_cast<const std::byte*>(payload));
  });
}

void Letters::receive(int member, const Note& note, const std::byte* payload) {
  const bool names_member =
      std::any_of(members_.begin(), members_.end(), [&](int m) { return static_cast<uint64_t>(m) == note.ticket; });
  if (note.topic > last_topic || ((note.topic == leaving || (note.flags & Note::kLeft)) && !names_member))
    mail_->refuse(member);
  if (note.topic == leaving) {
    if (has_left_[member]) mail_->refuse(member);
    has_left_[member] = true;
    ++left_count_;
    heard_of_leaving(note);
    return;
  }
  const Subject subject = subject_of(note);
  Gathering& meeting = at(subject);
  if (meeting.from[member].here) {
    Received next;
    next.note = note;
    next.payload.assign(payload, payload + note.bytes);
    meeting.later.emplace_back(member, std::move(next));
    return;
  }
  take(meeting, member, note, payload);
  if (!meeting.here && marks(note)) come_with_mark(subject, meeting);
}

void Letters::take(Gathering& meeting, int member, const Note& note, const std::byte* payload) {
  Received& received = meeting.from[member];
  received.here = true;
  received.note = note;
  received.payload.clear();
  if (payload != nullptr) received.payload.assign(payload, payload + note.bytes);
  if (member == me_) meeting.here = true, meeting.mine = note;
  if (--meeting.missing > 0) return;
  meeting.complete = meeting.agreed = true;
  meeting.ticket = meeting.from[0].note.ticket;
  const Note* first = nullptr;  // that has a signature
  for (const Received& one : meeting.from) {
    const bool left = one.note.flags & Note::kLeft;
    if (left && (meeting.left < 0 || static_cast<int>(one.note.ticket) < meeting.left))
      meeting.left = static_cast<int>(one.note.ticket);
    if (left || (one.note.flags & Note::kPoison)) meeting.agreed = false;
    if (one.note.flags & Note::kJoined) meeting.joined = true;
    if (left || (one.note.flags & Note::kSilent)) continue;
    if (first == nullptr) first = &one.note;
    if (one.note.signature != first->signature) meeting.agreed = false;
  }
  is_complete(meeting);
}

void Letters::close(Meeting& closed) {
  auto& meeting = static_cast<Gathering&>(closed);
  RINGDP_CHECK(meeting.complete);
  is_complete_no_more(meeting);  // who came last may have seen that it is complete before it was told
  const auto later = std::exchange(meeting.later, {});
  for (Received& received : meeting.from) received.here = false;
  meeting.here = meeting.complete = meeting.for_nobody = meeting.joined = false;
  meeting.left = -1;
  meetings_.release(subject_of(meeting.mine));
  for (const auto& [member, next] : later) receive(member, next.note, next.payload.data());
}

void Letters::tell_of_leaving() { tell(tell_leaving(leaving), nullptr); }

void Letters::mark_open() {
  meetings_.for_each([this](const Subject& subject, Gathering& meeting) {
    const auto heard = std::find_if(meeting.from.begin(), meeting.from.end(), [](const Received& r) { return r.here; });
    if (!meeting.here && heard != meeting.from.end() && marks(heard->note)) come_with_mark(subject, meeting);
  });
}

bool Letters::has_left(int place) const {
  const auto member = std::find(places_.begin(), places_.end(), place);
  return member == places_.end() || has_left_[static_cast<size_t>(member - places_.begin())];
}

void Letters::ring() const {
  for (size_t m = 0; m < members_.size(); ++m)
    if (static_cast<int>(m) != me_) host_->head(places_[m]).bell.ring();
}

}  // namespace ringdp
