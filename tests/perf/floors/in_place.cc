// The floor for tensors that lie in memory shared by the ranks of a host: rank r sums chunk r of all tensors and writes
// the sum into all of them. Nothing is copied, every element is read and written once.

#include <algorithm>

#include "team.h"

namespace {

constexpr size_t kBlock = 1024;  // floats that stay in the L1 cache between the passes over several ranks

void sum_two(float* __restrict a, float* __restrict b, size_t count) {
  for (size_t i = 0; i < count; i++) {
    const float sum = a[i] + b[i];
    a[i] = sum;
    b[i] = sum;
  }
}

void sum_many(float* const* tensors, int ranks, size_t begin, size_t end) {
  float sum[kBlock];
  for (size_t at = begin; at < end; at += kBlock) {
    const size_t n = std::min(kBlock, end - at);
    std::copy_n(tensors[0] + at, n, sum);
    for (int rank = 1; rank < ranks; rank++) {
      const float* __restrict one = tensors[rank] + at;
      for (size_t i = 0; i < n; i++) sum[i] += one[i];
    }
    for (int rank = 0; rank < ranks; rank++) std::copy_n(sum, n, tensors[rank] + at);
  }
}

}  // namespace

// `shared`: a Team, then from kTeamBytes on a tensor of `count` floats for each rank, `stride` bytes apart.
extern "C" void in_place(void* shared, size_t stride, int rank, int ranks, size_t count) {
  float* tensors[64];
  for (int r = 0; r < ranks; r++) {
    tensors[r] = reinterpret_cast<float*>(static_cast<char*>(shared) + kTeamBytes + stride * r);
  }
  const size_t begin = part(count, rank, ranks), end = part(count, rank + 1, ranks);
  Team* team = team_of(shared);
  barrier(team, ranks);
  if (ranks == 2) {
    sum_two(tensors[0] + begin, tensors[1] + begin, end - begin);
  } else {
    sum_many(tensors, ranks, begin, end);
  }
  barrier(team, ranks);
}
