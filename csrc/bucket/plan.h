// Which tensor goes into which bucket: a pure function of sizes and dtypes, in the order in which gradients are
// expected.
#pragma once

#include <cstdint>
#include <vector>

#include "base/dtype.h"

namespace ringdp {

struct PlanTensor {
  uint64_t count;
  Dtype dtype;
};

struct PlanBucket {
  Dtype dtype;
  uint64_t count = 0;               // elements, padding included
  std::vector<uint32_t> tensors{};  // indices into the given order
  std::vector<uint64_t> offsets{};  // of each tensor in the bucket, elements
};

// Fills buckets in the given order, one open bucket per dtype; a bucket is closed when it has reached its limit in
// bytes (the very first bucket `first_bytes`, so that the exchange starts early; the others `bytes`). Buckets come in
// the order in which they are complete, i.e. by their last tensor. Tensors start on 64-byte boundaries, as vector
// instructions like it.
std::vector<PlanBucket> assign_buckets(const std::vector<PlanTensor>& tensors, uint64_t first_bytes, uint64_t bytes);

}  // namespace ringdp
