// What follows when the ranks have told each other what they mean by an operation: an error with a table of it, or some rank
// has joined, and takes part in what the others have submitted.
#include <algorithm>
#include <new>
#include <utility>

#include "base/check.h"
#include "collectives/neutral.h"
#include "engine/operation.h"
#include "submit/differences.h"

namespace ringdp {

namespace {

// What a rank that has joined tells: averages are divided by the number of all ranks, or of those that have not.
const std::string kAbsent = "joined", kAbsentNotCounted = "joined, not counted";

}  // namespace

// Not of the form of either: it begins with the length of a name.
std::string description_of(const Submission& s, Describe describe) {
  if (describe == Describe::no) return "";
  if (s.absent) return s.divides_by_active ? kAbsentNotCounted : kAbsent;
  return describe == Describe::difference ? s.description() : s.encoded();
}

// What every rank has told of its submission.
std::vector<std::string> Operation::descriptions() const {
  const char* text = reinterpret_cast<const char*>(result_.output.get());
  std::vector<std::string> descriptions;
  for (const uint64_t length : result_.rows) {
    descriptions.emplace_back(text, length);
    text += length;
  }
  return descriptions;
}

std::string Operation::disagreement(const std::vector<std::string>& descriptions) const {
  return "rank " + std::to_string(set_.name()) + ": '" + submission_.name +
         "' differs between ranks; nothing was exchanged:" + differences(descriptions, set_.ranks);
}

// Ranks that have joined have told nothing but that.
void Operation::described() {
  const std::vector<std::string> all = descriptions();
  const Describe why = std::exchange(describe_, Describe::no);
  result_ = {};
  if (why == Describe::difference) {
    done_ = true;
    error_ = Error(ErrorKind::mismatch, disagreement(all));
    return;
  }
  int active = 0;
  bool divides_by_active = false;
  const std::string* encoded = nullptr;
  for (const std::string& one : all) {
    divides_by_active |= one == kAbsentNotCounted;
    if (one == kAbsent || one == kAbsentNotCounted) continue;
    ++active;
    encoded = &one;
  }
  RINGDP_CHECK(encoded != nullptr);
  if (divides_by_active) divisor_ = active;
  part_ = 2;
  if (submission_.absent && !take_part(*encoded)) return refuse("a rank that has joined has no memory for it");
  const Submission& s = submission_;
  RINGDP_CHECK(s.kind != OpKind::broadcast || (s.root >= 0 && s.root < set_.size()));
  const auto is_absent = [&](int rank) { return all[rank] == kAbsent || all[rank] == kAbsentNotCounted; };
  const bool lacks_root = s.kind == OpKind::broadcast && is_absent(s.root);
  if (lacks_root || s.kind == OpKind::alltoall || s.kind == OpKind::open_plan) {
    int rank = lacks_root ? s.root : 0;
    while (!is_absent(rank)) ++rank;
    done_ = true;
    error_ =
        Error(ErrorKind::peer, "rank " + std::to_string(set_.name()) + ": " + label() + " cannot complete: rank " +
                                   std::to_string(set_.ranks[rank]) + " has joined, and has nothing to contribute");
    return;
  }
  if (s.in_graph) {
    done_ = true;
    error_ = Error(ErrorKind::peer, "rank " + std::to_string(set_.name()) + ": " + label() +
                                        " cannot be captured in a CUDA graph: a rank has joined, and replays nothing");
    return;
  }
  run_.reset();
  sizes_known_ = false;
  begin();
}

// As one that has submitted it, too, with what changes nothing. False where memory is lacking.
bool Operation::take_part(const std::string& encoded) {
  Submission mine = Submission::decoded(encoded);
  mine.process_set = submission_.process_set;
  mine.key = submission_.key;
  mine.absent = true;
  mine.handle = submission_.handle;
  submission_ = std::move(mine);
  Submission& s = submission_;
  RINGDP_CHECK(!s.shape.empty() || !(s.first_may_differ() || s.kind == OpKind::reducescatter));
  if (s.first_may_differ()) s.shape[0] = 0;
  chosen_ = choose();
  const uint64_t bytes = s.count() * size_of(s.dtype);
  scratch_.reset(new (std::nothrow)
                     std::byte[std::max<uint64_t>(1, s.kind == OpKind::reducescatter ? 2 * bytes : bytes)]);
  if (!scratch_) return false;
  s.input = s.output = scratch_.get();
  if (s.kind == OpKind::reducescatter) s.output = scratch_.get() + bytes;
  if (s.kind == OpKind::allreduce || s.kind == OpKind::reducescatter)
    fill_neutral(scratch_.get(), s.count(), s.dtype, s.op);
  return true;
}

}  // namespace ringdp
