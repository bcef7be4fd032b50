#include "collectives/adasum.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/check.h"
#include "kernels/kernels.h"

namespace ringdp {

namespace {

constexpr uint64_t kBlock = 1024;  // elements that are widened at a time
constexpr int kSums = 8;           // partial sums, so that the compiler may add several elements at once
using Block = std::array<double, kBlock>;

// Elements [at, at + n) as float64.
const double* widened(Dtype dtype, const void* from, uint64_t at, uint64_t n, Block& block) {
  const auto* bytes = static_cast<const std::byte*>(from) + at * size_of(dtype);
  if (dtype == Dtype::float64) return reinterpret_cast<const double*>(bytes);
  if (dtype == Dtype::float32) {
    const auto* floats = reinterpret_cast<const float*>(bytes);
    std::copy_n(floats, n, block.begin());
  } else {
    kernels::widen(Dtype::float64, block.data(), dtype, bytes, n);
  }
  return block.data();
}

void narrow(Dtype dtype, void* to, uint64_t at, uint64_t n, const Block& block) {
  auto* bytes = static_cast<std::byte*>(to) + at * size_of(dtype);
  if (dtype == Dtype::float64)
    std::memcpy(bytes, block.data(), n * sizeof(double));
  else if (dtype == Dtype::float32)
    std::transform(block.begin(), block.begin() + n, reinterpret_cast<float*>(bytes),
                   [](double x) { return static_cast<float>(x); });
  else
    kernels::narrow(dtype, bytes, Dtype::float64, block.data(), n);
}

struct Products {
  double ab = 0, aa = 0, bb = 0;
};

Products products(const double* a, const double* b, uint64_t n) {
  double ab[kSums] = {}, aa[kSums] = {}, bb[kSums] = {};
  for (uint64_t i = 0; i + kSums <= n; i += kSums)
    for (int k = 0; k < kSums; ++k) {
      ab[k] += a[i + k] * b[i + k];
      aa[k] += a[i + k] * a[i + k];
      bb[k] += b[i + k] * b[i + k];
    }
  for (uint64_t i = n - n % kSums; i < n; ++i) {
    ab[0] += a[i] * b[i];
    aa[0] += a[i] * a[i];
    bb[0] += b[i] * b[i];
  }
  Products sum;
  for (int k = 0; k < kSums; ++k) sum.ab += ab[k], sum.aa += aa[k], sum.bb += bb[k];
  return sum;
}

}  // namespace

void adasum(Dtype dtype, void* to, const void* a, const void* b, uint64_t count) {
  RINGDP_CHECK(is_float(dtype));
  Block left, right, sum;
  Products all;
  for (uint64_t at = 0; at < count; at += kBlock) {
    const uint64_t n = std::min(kBlock, count - at);
    const Products some = products(widened(dtype, a, at, n, left), widened(dtype, b, at, n, right), n);
    all.ab += some.ab, all.aa += some.aa, all.bb += some.bb;
  }
  const double of_a = all.aa > 0 ? 1 - all.ab / (2 * all.aa) : 1, of_b = all.bb > 0 ? 1 - all.ab / (2 * all.bb) : 1;
  for (uint64_t at = 0; at < count; at += kBlock) {
    const uint64_t n = std::min(kBlock, count - at);
    const double *x = widened(dtype, a, at, n, left), *y = widened(dtype, b, at, n, right);
    for (uint64_t i = 0; i < n; ++i) sum[i] = of_a * x[i] + of_b * y[i];
    narrow(dtype, to, at, n, sum);
  }
}

}  // namespace ringdp
