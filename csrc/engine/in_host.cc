// What an all-reduce does among ranks that share memory, alone or as a part of two levels: all of a host know where each
// other's memory is (whereabouts.h), or meet to tell it, and take the same way.
#include <algorithm>
#include <utility>

#include "agree/digest.h"
#include "base/check.h"
#include "engine/operation.h"

namespace ringdp {

namespace {

// "rank 1 means another operation".
std::string who_differs(const Meetings::Meeting& meeting, const ProcessSet& set) {
  std::string others;
  for (size_t member = 0; member < meeting.from.size(); ++member) {
    const Note& note = meeting.from[member].note;
    if (static_cast<int>(member) == set.letters->me()) continue;
    const bool has_given_up = note.flags & Note::kPoison;
    if (!has_given_up && note.signature == meeting.mine.signature) continue;
    others += (others.empty() ? "rank " : ", rank ") +
              std::to_string(set.data->name_of(set.letters->members()[member])) +
              (has_given_up ? " has given up" : " means another operation");
  }
  return others.empty() ? "another rank of this host means another operation, or has given up" : others;
}

}  // namespace

// The same on all ranks of the host, also where they differ in the bytes of a bucket, by which an algorithm is chosen: their
// letters show it.
bool Operation::uses_shared_memory() const {
  if (submission_.kind != OpKind::allreduce || submission_.op == ReduceOp::adasum) return false;
  if (set_.one_host() || set_.chooser.forces_messages()) return set_.reduces_in_shared_memory();
  return set_.levels && (chosen_ == Algorithm::two_level || !all_choose_the_same());
}

// The ranks of the host have not told each other all that is needed, when they agreed on a name: now they do.
void Operation::meet() {
  const Submission& s = submission_;
  const bool has_told = !told_.empty();
  told_.resize(set_.letters->members().size());
  Whereabouts& mine = told_[set_.letters->me()];
  take_memory(mine, set_, s, options_, has_told || lane_ > 0);
  Note note;
  note.topic = Meetings::place;
  note.lane = static_cast<uint32_t>(lane_);
  note.key = sequence();
  note.bytes = sizeof mine;
  const uint64_t signature =
      s.lane < 0 ? s.signature() : Digest().add(s.plan_digest).add(s.bucket).add(s.signature()).value();
  note.signature = in_generation(generation_, signature);
  if (!refusal_.empty()) note.flags |= Note::kPoison;
  Counters::add(counters_.places);
  meeting_ = &set_.letters->come(note, &mine, 0);
}

void Operation::met() {
  const bool agreed = meeting_->agreed;
  if (agreed) told_ = told_in(*meeting_);
  const std::string why = agreed ? "" : refusal_.empty() ? who_differs(*meeting_, set_) : refusal_;
  set_.letters->close(*meeting_);
  meeting_ = nullptr;
  if (agreed) return run_in_host();
  if (!set_.one_host()) return poison(why);  // the other hosts must hear of it
  done_ = true;
  error_ = Error(ErrorKind::peer, "rank " + std::to_string(set_.name()) + ": " + label() + " failed: " + why);
  leave_memory();
}

// This rank cannot carry it out: the others hear of it where they wait for it, in a meeting or in the exchange.
void Operation::refuse(const std::string& why) {
  refusal_ = why;
  if (!uses_shared_memory()) return poison(why);
  if (way_of(told_) == InHost::messages) return meet();
  run_in_host();
  run_->poison(why);
}

// Where some rank has no shared memory left, all of the host see it, and take messages, which give the same bits.
void Operation::run_in_host() {
  const Elements e = elements();
  const Memory memory{submission_.input, submission_.output};
  const InHost way = set_.one_host() || chosen_ == Algorithm::two_level ? way_of(told_) : InHost::messages;
  if (way != InHost::messages) Counters::add(counters_.in_host);
  Schedule schedule = in_host_schedule(way, {e.prescale != 1, e.divide != 1 || e.postscale != 1});
  start_run(std::move(schedule), memory, e, 1, way == InHost::messages ? Shared{} : shared());
}

Schedule Operation::in_host_schedule(InHost way, Arithmetic arithmetic) const {
  const uint64_t count = submission_.count();
  const Dtype dtype = submission_.dtype;
  const Half half = submission_.half;
  if (set_.one_host()) {
    const Pipeline cut = cut_for_shared_memory(dtype, options_);
    if (way == InHost::direct) return shared_allreduce_direct(set_.size(), set_.rank(), count, cut, arithmetic, half);
    if (way == InHost::staged) return shared_allreduce_staged(set_.size(), set_.rank(), count, cut, arithmetic, half);
  } else if (chosen_ == Algorithm::two_level) {
    const Pipeline cut = cut_for_two_levels(*set_.levels, count, dtype, options_);
    if (way == InHost::direct) return two_level_direct(*set_.levels, count, cut, arithmetic, half);
    if (way == InHost::staged) return two_level_staged(*set_.levels, count, cut, arithmetic, half);
    return two_level_messages(*set_.levels, count, cut, arithmetic, half);
  }
  return fixed_schedule(elements());
}

Shared Operation::shared() const {
  const Letters& letters = *set_.letters;
  const Host& host = *letters.host();
  Shared shared;
  shared.me = static_cast<size_t>(letters.me());
  const uint64_t item = size_of(submission_.dtype), bytes = submission_.count() * item;
  for (size_t member = 0; member < told_.size(); ++member) {
    const int rank = letters.members()[member], place = letters.places()[member];
    const auto mapped = [&](uint64_t offset, uint64_t most) -> std::byte* {
      if (offset == Heap::kNowhere) return nullptr;
      if (!host.holds(place, offset, most))
        fail(ErrorKind::transport, "rank ", set_.name(), ": ", label(), ": rank ", place,
             " has told a place that lies outside its shared memory");
      return host.at(place, offset);
    };
    const Whereabouts& told = told_[member];
    const uint64_t area = told.area == Heap::kNowhere ? 0 : area_of(set_, submission_, options_) * item;
    std::byte* const counts = mapped(told.counts, sizeof(Counts::Line));
    RINGDP_CHECK(counts != nullptr && reinterpret_cast<uintptr_t>(counts) % alignof(Counts::Line) == 0);
    shared.mates.push_back({rank, mapped(told.output, bytes), mapped(told.area, area), &Counts::at(counts), told.base});
  }
  shared.ring = [&letters] { letters.ring(); };
  return shared;
}

// Nobody reads or writes this rank's memory any more. After a failure the counts keep the mark of it for those who have
// still to see it: they are not used again.
void Operation::leave_memory() {
  if (told_.empty()) return;
  const bool has_failed = run_ && !run_->error().empty();
  give_back(told_[set_.letters->me()], set_, !has_failed);
  told_.clear();
}

}  // namespace ringdp
