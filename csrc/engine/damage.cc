// The end of a run whose messages carry checksums. A rank finds what was damaged on its way to it, perhaps when it has sent on
// what came of it, and others have all they need. So all ranks come to a meeting, with what each has found, and no output is
// called good before: either it is on all ranks, or on none. The step's vote would cost nothing, but comes too late for who
// clips gradients when backward() returns, and named operations have none.
#include "engine/damage.h"

#include <cstring>
#include <utility>
#include <vector>

#include "base/check.h"
#include "engine/operation.h"

namespace ringdp {

void merge_damage(std::byte* mine, const std::byte* theirs) {
  Damage a, b;
  std::memcpy(&a, mine, sizeof a);
  std::memcpy(&b, theirs, sizeof b);
  if (b < a) std::memcpy(mine, &b, sizeof b);
}

// One that has failed otherwise waits for nobody; who waits for it must hear of it all the same.
void Operation::ask_for_damage() {
  const Damage mine = run_->damage();
  Note note;
  note.topic = Meetings::damage;
  note.lane = static_cast<uint32_t>(lane_);
  note.key = sequence();
  note.bytes = sizeof mine;
  Counters::add(counters_.damage);
  Meetings::Meeting& meeting = set_.meetings().come(note, &mine, 0);
  if (run_->error().empty()) {
    damage_ = &meeting;
    return;
  }
  set_.meetings().abandon(meeting);
  run_finished();
}

void Operation::hear_of_damage() {
  Damage damage;
  const auto hear = [&damage](const std::vector<std::byte>& payload) {
    RINGDP_CHECK(payload.size() == sizeof damage);
    merge_damage(reinterpret_cast<std::byte*>(&damage), payload.data());
  };
  if (damage_->from.empty()) hear(damage_->merged);
  for (const Meetings::Received& one : damage_->from) hear(one.payload);
  set_.meetings().close(*std::exchange(damage_, nullptr));
  if (!damage) return run_finished();
  leave_memory();
  done_ = true;
  error_ = Error(ErrorKind::checksum,
                 "rank " + std::to_string(set_.name()) + ": " + label() + " failed: " + damage.text(*set_.data));
}

}  // namespace ringdp
