// Into which segments a tensor on GPUs is cut that goes in two levels.
#include "engine/cut.h"

#include "check.h"

using namespace ringdp;

namespace {

void check_segments(uint64_t count, int mates, Dtype dtype) {
  const std::vector<Chunk> segments = cut_for_gpu_levels(count, mates, dtype);
  const std::string which = std::to_string(count) + " elements of " + name_of(dtype) + ", " + std::to_string(mates);
  uint64_t end = 0;
  for (const Chunk& segment : segments) {
    CHECK(segment.begin == end && segment.end > segment.begin, which);
    if (&segment != &segments.back()) CHECK((segment.end - segment.begin) % static_cast<uint64_t>(mates) == 0, which);
    end = segment.end;
  }
  CHECK(end == count, which);
  const uint64_t bytes = count * size_of(dtype);
  CHECK(segments.size() <= 8 && (bytes < 4 << 20 || segments.size() >= 4), which);
  CHECK(bytes >= 1 << 20 || segments.size() <= 1, which);
}

}  // namespace

TEST(gpu_levels_have_segments_of_equal_chunks) {
  CHECK(cut_for_gpu_levels(0, 2, Dtype::float32).empty());
  for (const int mates : {2, 3, 8, 72})
    for (const Dtype dtype : {Dtype::uint8, Dtype::bfloat16, Dtype::float32, Dtype::float64})
      for (const uint64_t bytes : {1u << 3, 1u << 20, 1u << 21, 4u << 20, 25u << 20, 1u << 30})
        for (const uint64_t more : {0, 1, 13}) check_segments(bytes / size_of(dtype) + more, mates, dtype);
}
