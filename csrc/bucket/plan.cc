#include "bucket/plan.h"

#include <algorithm>
#include <map>
#include <utility>

namespace ringdp {

namespace {

constexpr uint64_t kAlignment = 64;  // bytes

void append(PlanBucket& bucket, uint32_t index, const PlanTensor& tensor) {
  const uint64_t unit = kAlignment / size_of(tensor.dtype);
  bucket.count = (bucket.count + unit - 1) / unit * unit;
  bucket.tensors.push_back(index);
  bucket.offsets.push_back(bucket.count);
  bucket.count += tensor.count;
}

}  // namespace

std::vector<PlanBucket> assign_buckets(const std::vector<PlanTensor>& tensors, uint64_t first_bytes, uint64_t bytes) {
  std::vector<PlanBucket> closed;
  std::map<Dtype, PlanBucket> open;
  for (uint32_t i = 0; i < tensors.size(); ++i) {
    const Dtype dtype = tensors[i].dtype;
    PlanBucket& bucket = open.emplace(dtype, PlanBucket{dtype}).first->second;
    append(bucket, i, tensors[i]);
    const uint64_t limit = closed.empty() ? first_bytes : bytes;
    if (bucket.count * size_of(dtype) < limit) continue;
    closed.push_back(std::move(bucket));
    open.erase(dtype);
  }
  for (auto& [dtype, bucket] : open) closed.push_back(std::move(bucket));
  std::sort(closed.begin(), closed.end(),
            [](const PlanBucket& a, const PlanBucket& b) { return a.tensors.back() < b.tensors.back(); });
  return closed;
}

}  // namespace ringdp
