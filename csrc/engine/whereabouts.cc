#include "engine/whereabouts.h"

#include <algorithm>
#include <cstring>

#include "engine/cut.h"

namespace ringdp {

uint64_t area_of(const ProcessSet& set, const Submission& s, const Options& options) {
  if (set.one_host()) return shared_area(set.size(), s.count(), cut_for_shared_memory(s.dtype, options));
  return two_level_area(*set.levels, s.count(), cut_for_two_levels(*set.levels, s.count(), s.dtype, options));
}

InHost way_of(const std::vector<Whereabouts>& told) {
  const auto all = [&](auto can) { return !told.empty() && std::all_of(told.begin(), told.end(), can); };
  if (all([](const Whereabouts& w) { return w.direct(); })) return InHost::direct;
  if (all([](const Whereabouts& w) { return w.staged(); })) return InHost::staged;
  return InHost::messages;
}

void take_memory(Whereabouts& mine, ProcessSet& set, const Submission& s, const Options& options,
                 bool area_in_any_case) {
  Heap& heap = set.letters->host()->heap();
  if (mine.counts == Heap::kNowhere) {
    mine.counts = set.counts->take();
    if (mine.counts != Heap::kNowhere) {
      mine.base = Counts::values(Counts::at(heap.at(mine.counts)));
      ++set.with_memory;
    }
  }
  // Else others would read what is not cast yet, or not here.
  const bool ready = s.input == s.output && !s.wide && !s.on_gpu;
  if (ready) mine.output = heap.offset_of(s.output, s.count() * size_of(s.dtype));
  if (mine.area != Heap::kNowhere || (mine.output != Heap::kNowhere && !area_in_any_case)) return;
  const uint64_t bytes = area_of(set, s, options) * size_of(s.dtype);
  void* block = heap.allocate(bytes);
  if (block) mine.area = heap.offset_of(block, bytes);
}

void give_back(Whereabouts& mine, ProcessSet& set, bool counts_too) {
  Heap& heap = set.letters->host()->heap();
  if (mine.area != Heap::kNowhere) heap.free(heap.at(mine.area));
  if (mine.counts != Heap::kNowhere) {
    if (counts_too) set.counts->give_back(mine.counts);
    --set.with_memory;
  }
  mine = {};
}

std::vector<Whereabouts> told_in(const Meetings::Meeting& meeting) {
  std::vector<Whereabouts> told(meeting.from.size());
  for (size_t member = 0; member < told.size(); ++member) {
    const std::vector<std::byte>& payload = meeting.from[member].payload;
    if (payload.size() == sizeof told[member]) std::memcpy(&told[member], payload.data(), sizeof told[member]);
  }
  return told;
}

}  // namespace ringdp
