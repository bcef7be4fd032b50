#include "agree/doubling.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "collectives/power.h"
#include "kernels/crc32c.h"

namespace ringdp {

namespace {

uint32_t checksum_of(const Note& note, const void* payload, size_t bytes) {
  return kernels::crc32c(payload, bytes, kernels::crc32c(&note, sizeof note));
}

}  // namespace

Doubling::Doubling(Transport& transport, int tag, bool checks, Merge merge)
    : Meetings(transport.rank()), transport_(transport), tag_(tag), checks_(checks), merge_(std::move(merge)) {
  const int rank = transport.rank();
  const PowerOfTwo power(transport.size(), rank);
  if (power.hands_over()) {
    stages_.push_back({rank + 1, true, true, false, true});
  } else {
    stands_in_ = power.stands_in();
    if (stands_in_) stages_.push_back({rank - 1, false, true, false, false});
    for (int level = 0; level < power.levels(); ++level)
      stages_.push_back({power.partner(level), true, true, power.is_lower(level), false});
    if (stands_in_) stages_.push_back({rank - 1, true, false, false, false});
  }
  for (size_t s = 0; s < stages_.size(); ++s) {
    if (!stages_[s].receives) continue;
    inboxes_.emplace_back();
    inboxes_.back().stage = s;
  }
  news_missing_ = inboxes_.size();
}

Doubling::~Doubling() = default;

// --- coming --------------------------------------------------------------------------------------------------------

Doubling::Gathering& Doubling::at(const Subject& subject) {
  Gathering& meeting = meetings_.at(subject);
  meeting.waiting.resize(stages_.size());
  return meeting;
}

Meetings::Meeting& Doubling::come(const Note& note, const void* payload, uint64_t token) {
  Gathering& meeting = at(subject_of(note));
  RINGDP_CHECK(!meeting.here, "this rank has come to this meeting before");
  meeting.token = token;
  begin(meeting, note, payload);
  return meeting;
}

void Doubling::come_with_mark(const Subject& subject, Gathering& meeting) {
  meeting.for_nobody = true;
  begin(meeting, mark(subject), nullptr);
}

void Doubling::begin(Gathering& meeting, const Note& note, const void* payload) {
  RINGDP_CHECK(note.bytes <= kMostPayload);
  const auto* bytes = static_cast<const std::byte*>(payload);
  meeting.here = true;
  meeting.mine = meeting.heard = note;
  meeting.merged.clear();
  if (bytes != nullptr) meeting.merged.assign(bytes, bytes + note.bytes);
  meeting.stage = 0;
  ++open_;
  enter(meeting);
  go_on(meeting);
}

void Doubling::close(Meeting& closed) {
  auto& meeting = static_cast<Gathering&>(closed);
  RINGDP_CHECK(meeting.complete);
  is_complete_no_more(meeting);  // who came last may have seen that it is complete before it was told
  const Subject subject = subject_of(meeting.mine);
  meeting.here = meeting.complete = meeting.for_nobody = meeting.joined = false;
  meeting.left = -1;
  for (const auto& some : meeting.waiting) {
    if (some.empty()) continue;
    if (marks(some.front().note)) come_with_mark(subject, meeting);
    return;  // the next meeting about the same thing has begun
  }
  meetings_.release(subject);
}

void Doubling::is_abandoned(Meeting& meeting) {
  static_cast<Gathering&>(meeting).abandoned = true;
  --open_;
  ++abandoned_;
}

// --- the exchanges -------------------------------------------------------------------------------------------------

// What this rank has heard so far goes out at the beginning of an exchange.
void Doubling::enter(Gathering& meeting) {
  if (meeting.stage < stages_.size() && stages_[meeting.stage].sends)
    send(stages_[meeting.stage].peer, meeting.heard, meeting.merged.data());
}

void Doubling::go_on(Gathering& meeting) {
  while (meeting.stage < stages_.size()) {
    if (stages_[meeting.stage].receives) {
      auto& waiting = meeting.waiting[meeting.stage];
      if (waiting.empty() && !lacks_partner(meeting)) return;
      Received received;
      if (waiting.empty()) {
        const Subject subject = subject_of(meeting.mine);
        received.note = partner_ended_ ? mark(subject) : joined_mark(subject);
      } else {
        received = std::move(waiting.front());
        waiting.pop_front();
      }
      merge(meeting, received.note, received.payload.data());
    }
    ++meeting.stage;
    enter(meeting);
  }
  const Note& heard = meeting.heard;
  meeting.complete = true;
  meeting.left = heard.flags & Note::kLeft ? static_cast<int>(heard.ticket) : -1;
  meeting.agreed = !(heard.flags & (Note::kLeft | Note::kPoison));
  meeting.joined = heard.flags & Note::kJoined;
  meeting.ticket = heard.ticket;
  --(std::exchange(meeting.abandoned, false) ? abandoned_ : open_);
  if (meeting.mine.topic == leaving)
    all_left_ = true;
  else
    is_complete(meeting);
}

void Doubling::take(size_t stage, const Note& note, const std::byte* payload) {
  if (note.topic == news) return take_news(stage, note);
  if (note.topic == joining) {
    partner_comes_from_ = note.lane + 1;
    return partner_is_silent();
  }
  const Subject subject = subject_of(note);
  Gathering& meeting = at(subject);
  if (stages_[stage].is_result && !meeting.here) {  // it has ended without this rank,
    if (subject.topic == named && (note.flags & Note::kJoined) && is_silent_about(note))
      return take_result_with_mark(subject, meeting, note);
    return meetings_.release(subject);
  }
  if (stages_[stage].is_result && meeting.complete) return;           // or the one after it has
  if (meeting.here && !meeting.complete && meeting.stage == stage) {  // its turn, and none came before it
    merge(meeting, note, payload);
    ++meeting.stage;
    enter(meeting);
    return go_on(meeting);
  }
  Received received;
  received.note = note;
  received.payload.assign(payload, payload + note.bytes);
  meeting.waiting[stage].push_back(std::move(received));
  if (!meeting.here && marks(note)) come_with_mark(subject, meeting);
}

// Others have finished it without this rank, which has joined.
void Doubling::take_result_with_mark(const Subject& subject, Gathering& meeting, const Note& note) {
  meeting.here = meeting.for_nobody = true;
  meeting.mine = meeting.heard = mark(subject, false);
  meeting.stage = 0;
  ++open_;
  merge(meeting, note, nullptr);
  ++meeting.stage;
  go_on(meeting);
}

void Doubling::merge(Gathering& meeting, const Note& note, const std::byte* payload) {
  const Stage& stage = stages_[meeting.stage];
  Note& heard = meeting.heard;
  if (stage.is_result) {
    const bool has_data = !(note.flags & (Note::kPoison | Note::kLeft | Note::kJoined));
    if (note.bytes != (has_data ? meeting.mine.bytes : 0)) refuse(stage.peer);
    heard = note;
    meeting.merged.assign(payload, payload + note.bytes);
    return;
  }
  const uint32_t left = (heard.flags ^ note.flags) & Note::kLeft;  // a mark on one side only: its ticket is what counts
  heard.ticket = left == 0                   ? std::min(heard.ticket, note.ticket)
                 : heard.flags & Note::kLeft ? heard.ticket
                                             : note.ticket;
  const bool both_speak = !((heard.flags | note.flags) & Note::kSilent),
             both_silent = heard.flags & note.flags & Note::kSilent;
  if (heard.flags & Note::kSilent) heard.signature = note.signature;
  heard.flags |= note.flags;
  if (!both_silent) heard.flags &= ~uint32_t{Note::kSilent};
  const bool data_stay = heard.flags & Note::kJoined;
  if ((both_speak && heard.signature != note.signature) || (heard.bytes != note.bytes && !data_stay))
    heard.flags |= Note::kPoison;
  if (data_stay || (heard.flags & (Note::kPoison | Note::kLeft))) {
    heard.bytes = 0;
    meeting.merged.clear();
  } else if (heard.bytes > 0) {
    merge_(meeting, meeting.merged.data(), payload, stage.mine_is_left);
  }
}

// --- messages ------------------------------------------------------------------------------------------------------

void Doubling::send(int peer, const Note& note, const void* payload) {
  if (spare_.empty()) spare_.emplace_back();
  sending_.splice(sending_.end(), spare_, spare_.begin());
  Sending& message = sending_.back();
  Envelope envelope;
  envelope.note = note;
  if (checks_) envelope.checksum = checksum_of(note, payload, payload != nullptr ? note.bytes : 0);
  message.data.resize(sizeof envelope + note.bytes);
  std::memcpy(message.data.data(), &envelope, sizeof envelope);
  if (payload != nullptr) std::memcpy(message.data.data() + sizeof envelope, payload, note.bytes);
  message.request = transport_.send(peer, tag_, message.data.data(), message.data.size());
}

bool Doubling::poll() {
  bool moved = false;
  const auto post = [this](Inbox& in) {
    in.request = transport_.receive(stages_[in.stage].peer, tag_, in.buffer.data(), in.buffer.size());
  };
  if (!armed_) {
    for (Inbox& in : inboxes_) {
      in.buffer.resize(sizeof(Envelope) + kMostPayload);
      post(in);
    }
    armed_ = true;
  }
  for (Inbox& in : inboxes_) {
    size_t length = 0;
    while (in.request.pending() && transport_.test(in.request, &length)) {
      Envelope envelope;
      std::memcpy(&envelope, in.buffer.data(), sizeof envelope);
      look_at(in, envelope, length);
      take(in.stage, envelope.note, in.buffer.data() + sizeof envelope);
      post(in);
      moved = true;
    }
  }
  for (auto message = sending_.begin(); message != sending_.end();) {
    const auto here = message++;
    if (!transport_.test(here->request)) continue;
    spare_.splice(spare_.end(), sending_, here);
    moved = true;
  }
  return moved;
}

// Whether it can be what the peer has sent.
void Doubling::look_at(const Inbox& in, const Envelope& envelope, size_t length) const {
  const int me = transport_.name_of(rank()), peer = transport_.name_of(stages_[in.stage].peer);
  if (checks_ && length >= sizeof envelope &&
      checksum_of(envelope.note, in.buffer.data() + sizeof envelope, length - sizeof envelope) != envelope.checksum)
    fail(ErrorKind::checksum, "rank ", me, ": a message from rank ", peer, " to rank ", me,
         " was damaged on its way: one by which the ranks agree, with a tensor of at most RINGDP_LETTER_BYTES perhaps, "
         "has another checksum than when it was sent");
  const Note& note = envelope.note;
  const bool names_rank = note.topic == news || (note.flags & Note::kLeft);
  if (length < sizeof envelope || envelope.magic != Envelope::kMagic || envelope.version != Envelope::kVersion ||
      length != sizeof envelope + note.bytes || note.topic > last_topic ||
      (names_rank && note.ticket >= static_cast<uint64_t>(transport_.size())))
    refuse(stages_[in.stage].peer);
}

void Doubling::refuse(int peer) const {
  fail(ErrorKind::transport, "rank ", transport_.name_of(rank()), ": rank ", transport_.name_of(peer),
       " sent a message that this version of ringdp does not know: install the same one on all hosts");
}

void Doubling::cancel() {
  for (Inbox& in : inboxes_)
    if (in.request.pending()) transport_.cancel(in.request);
}

// --- leaving -------------------------------------------------------------------------------------------------------

void Doubling::tell_news() {
  if (std::exchange(told_, true)) return;
  const Note note = tell_leaving(news);
  for (const Inbox& in : inboxes_) send(stages_[in.stage].peer, note, nullptr);
}

void Doubling::take_news(size_t stage, const Note& note) {
  if (news_missing_ == 0) refuse(stages_[stage].peer);
  --news_missing_;
  const bool marks_now = note_leaving(note);
  tell_news();  // first, as it says more than the marks
  if (marks_now) mark_open();
  if (!stands_in_ || stage != 0) return;
  partner_ended_ = true;
  partner_is_silent();
}

void Doubling::partner_is_silent() {
  meetings_.for_each([this](const Subject&, Gathering& meeting) {
    if (meeting.here && !meeting.complete) go_on(meeting);
  });
}

// A rank that hands its tensor over hears of nothing that it has not come to, so it cannot come with a mark. But what it has
// come to it told at once, and what it has not told before its news it never will.
bool Doubling::lacks_partner(const Gathering& meeting) const {
  if (!stands_in_ || meeting.stage != 0 || meeting.mine.topic != named) return false;
  return partner_ended_ || (meeting.mine.lane < partner_comes_from_ && !(meeting.heard.flags & Note::kAwaits));
}

int Doubling::drawer() const { return PowerOfTwo(transport_.size(), 0).hands_over() ? 1 : 0; }

void Doubling::tell_of_joining() {
  if (stages_.empty() || !stages_[0].is_result) return;
  Note note;
  note.topic = joining;
  note.lane = era();
  send(stages_[0].peer, note, nullptr);
}

void Doubling::tell_of_leaving() {
  tell_news();
  Note note;
  note.topic = leaving;
  Gathering& meeting = at(subject_of(note));
  begin(meeting, note, nullptr);
}

void Doubling::mark_open() {
  meetings_.for_each([this](const Subject& subject, Gathering& meeting) {
    if (meeting.here) return;
    for (const auto& some : meeting.waiting)
      if (!some.empty() && marks(some.front().note)) return come_with_mark(subject, meeting);
  });
}

}  // namespace ringdp
