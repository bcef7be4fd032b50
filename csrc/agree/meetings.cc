#include "agree/meetings.h"

#include <algorithm>

namespace ringdp {

Meetings::Meeting* Meetings::next_complete() {
  while (!complete_.empty()) {
    Meeting* meeting = complete_.front();
    complete_.pop_front();
    if (meeting->left >= 0) heard_of_leaving(meeting->left);
    if (!meeting->for_nobody || (meeting->joined && meeting->left < 0)) return meeting;
    close(*meeting);
  }
  return nullptr;
}

void Meetings::is_complete_no_more(Meeting& meeting) {
  if (!complete_.empty()) complete_.erase(std::remove(complete_.begin(), complete_.end(), &meeting), complete_.end());
}

void Meetings::abandon(Meeting& meeting) {
  if (meeting.complete) return close(meeting);
  meeting.for_nobody = true;
  is_abandoned(meeting);
}

void Meetings::leave(bool failed, uint64_t steps) {
  if (left_) return;
  left_ = true;
  failed_ = failed;
  steps_ = steps;
  tell_of_leaving();
  mark_open();
}

Note Meetings::tell_leaving(Topic topic) const {
  const int failed = first_failed_ >= 0 ? first_failed_ : failed_ ? rank_ : -1;
  Note note;
  note.topic = topic;
  note.flags = failed >= 0 ? uint32_t{Note::kPoison} : 0;
  const int who = failed >= 0 ? failed : first_left_ >= 0 ? first_left_ : rank_;
  note.ticket = static_cast<uint64_t>(who);
  note.signature = who == rank_ ? steps_ : who == first_left_ ? first_left_after_ : 0;
  return note;
}

bool Meetings::note_leaving(int rank, bool failed, uint64_t steps) {
  if (failed && first_failed_ < 0 && rank != rank_) first_failed_ = rank;
  if (rank == first_left_ && first_left_after_ == 0) first_left_after_ = steps;  // of which a mark has told before
  if (first_left_ >= 0 || rank == rank_) return false;
  first_left_ = rank;
  first_left_after_ = steps;
  return !left_;
}

void Meetings::join() {
  joined_ = true;
  tell_of_joining();
  mark_open();
}

void Meetings::end_join() {
  joined_ = false;
  ++era_;
}

Note Meetings::joined_mark(const Subject& subject) const {
  Note note;
  note.key = subject.key, note.lane = subject.lane, note.topic = subject.topic;
  note.flags = Note::kJoined | Note::kSilent;
  return note;
}

Note Meetings::mark(const Subject& subject, bool draws) const {
  if (!left_ && first_left_ < 0) {
    Note note = joined_mark(subject);
    if (draws && rank_ == drawer()) note.ticket = draw_ticket();
    return note;
  }
  Note note;
  note.key = subject.key, note.lane = subject.lane, note.topic = subject.topic;
  note.flags = Note::kLeft;
  note.ticket = static_cast<uint64_t>(first_left_ >= 0 ? first_left_ : rank_);
  return note;
}

}  // namespace ringdp
