#include "engine/cut.h"

#include <algorithm>

namespace ringdp {

Pipeline cut_for_messages(uint64_t chunk_elements, Dtype dtype, const Options& options) {
  constexpr uint64_t kMostSegments = 16384;
  const uint64_t wanted = std::max(options.segment_bytes, chunk_elements * size_of(dtype) / kMostSegments);
  const uint64_t bytes = std::min<uint64_t>(wanted, kLongestMessage);
  return {std::max<uint64_t>(1, bytes / size_of(dtype)), static_cast<int>(options.depth)};
}

Pipeline cut_for_shared_memory(Dtype dtype, const Options& options) {
  return {std::max<uint64_t>(1, options.shared_segment_bytes / size_of(dtype)), 1};
}

Pipeline cut_for_two_levels(const Levels& levels, uint64_t count, Dtype dtype, const Options& options) {
  return cut_for_messages(count / (levels.mates.size() * levels.ring.size()), dtype, options);
}

}  // namespace ringdp
