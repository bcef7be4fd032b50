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

std::vector<Chunk> cut_for_gpu_levels(uint64_t count, int mates, Dtype dtype) {
  // Nobody has measured these. Each segment costs three agreements; with eight an eighth of the time in hosts does not
  // overlap.
  constexpr uint64_t kLeastBytes = 1 << 20, kMostSegments = 8, kAlignment = 64;
  const uint64_t wanted = std::clamp<uint64_t>(count * size_of(dtype) / kLeastBytes, 1, kMostSegments);
  const uint64_t unit = static_cast<uint64_t>(mates) * kAlignment / size_of(dtype);
  const uint64_t units = (count + wanted - 1) / wanted / unit + 1;
  const uint64_t length = wanted == 1 ? count : units * unit;
  std::vector<Chunk> segments;
  for (uint64_t at = 0; at < count; at += length) segments.push_back({at, std::min(count, at + length)});
  return segments;
}

}  // namespace ringdp
