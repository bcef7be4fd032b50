// Where the ranks of a host find each other's memory for one operation. Each tells it to the others by letter
// (agree/letters.h): a named operation together with its name, so that it starts as soon as all have come to it; a bucket
// of a plan, and an operation that had to wait for memory, when it starts.
//
// An output in shared memory that is reduced in place is used where it lies; all others pass through an area.
#pragma once

#include <vector>

#include "base/options.h"
#include "shared/counts.h"
#include "submit/submission.h"
#include "world/process_set.h"

namespace ringdp {

struct Whereabouts {
  uint64_t output = Heap::kNowhere, area = Heap::kNowhere, counts = Heap::kNowhere;  // offsets in the rank's heap
  Counts::Values base{};                                                             // where the counts stand

  bool direct() const { return output != Heap::kNowhere && counts != Heap::kNowhere; }
  bool staged() const { return area != Heap::kNowhere && counts != Heap::kNowhere; }
};

// In which way an operation uses what the ranks of the host have told.
enum class InHost { direct, staged, messages };

// Direct if all can, else staged if all can; else it is messages: there is no memory left on some rank.
InHost way_of(const std::vector<Whereabouts>& told);

// Takes what is missing: the counts, and an area if there has to be one or the output does not lie in shared memory.
// What cannot be had stays nowhere.
void take_memory(Whereabouts& mine, ProcessSet& set, const Submission& submission, const Options& options,
                 bool area_in_any_case);
// counts_too: false where others have still to see what stands in them.
void give_back(Whereabouts& mine, ProcessSet& set, bool counts_too = true);

// Elements of an area.
uint64_t area_of(const ProcessSet& set, const Submission& submission, const Options& options);

// What the letters of a meeting say, by member.
std::vector<Whereabouts> told_in(const Meetings::Meeting& meeting);

}  // namespace ringdp
