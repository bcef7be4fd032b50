#include "kernel_bits.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "agree/digest.h"
#include "kernels/kernels.h"

namespace ringdp::tests {
namespace {

constexpr double kFactors[] = {0.5,  1.0,  -3.0,  0.0,     1.0 / 3,  1e-3,
                               257., 1e30, 1e300, -1e-300, INFINITY, std::numeric_limits<double>::quiet_NaN()};
constexpr int kRanks[] = {1, 2, 3, 7, 64, 100, 1000, std::numeric_limits<int>::max()};
constexpr size_t kRandom = 5001;  // no multiple of any vector's length

int mantissa_bits(Dtype dtype) {
  switch (dtype) {
    case Dtype::float16:
      return 10;
    case Dtype::bfloat16:
      return 7;
    case Dtype::float32:
      return 23;
    case Dtype::float64:
      return 52;
    case Dtype::float8_e4m3fn:
      return 3;
    case Dtype::float8_e5m2:
      return 2;
    default:
      return 0;
  }
}

std::vector<uint64_t> special(Dtype dtype) {
  const uint64_t top = uint64_t{1} << (8 * size_of(dtype) - 1);
  std::vector<uint64_t> found = {0, 1, 2, 3, 0x55, top - 1, top, top + 1, top + (top - 2), top + (top - 1)};
  if (!is_float(dtype)) return found;
  const uint64_t last = uint64_t{1} << mantissa_bits(dtype), infinity = top - last;
  const uint64_t quiet = infinity + last / 2, one = infinity / 2 / last * last;
  for (uint64_t x :
       {infinity - 1, infinity, infinity + 1, quiet, quiet + 5, one, one + 1, one - 1, last - 1, last, last + 1})
    found.insert(found.end(), {x, x + top});
  return found;
}

// Of a number of moderate size: products and sums of two of them round, and cancel, as those of gradients do.
uint64_t near_one(Dtype dtype, std::mt19937_64& random) {
  const double x = static_cast<double>(static_cast<int64_t>(random())) * 0x1p-60;
  uint64_t bits = 0;
  if (dtype == Dtype::float32) {
    const auto f = static_cast<float>(x);
    std::memcpy(&bits, &f, sizeof f);
  } else {
    std::memcpy(&bits, &x, sizeof x);
  }
  return bits;
}

void append(Bytes& to, Dtype dtype, uint64_t bits) {
  const size_t at = to.size();
  to.resize(at + size_of(dtype));
  std::memcpy(to.data() + at, &bits, size_of(dtype));  // little endian
}

// Two operands of equal length, in memory that begins one byte off.
struct Inputs {
  Bytes a{0}, b{0};
  size_t count = 0;

  explicit Inputs(Dtype dtype) {
    for (const uint64_t x : special(dtype))
      for (const uint64_t y : special(dtype)) add(dtype, x, y);
    if (size_of(dtype) == 2) {
      const Bytes other = patterns(dtype, 65536, 1);
      for (uint64_t x = 0; x < 65536; ++x) {
        uint64_t y = 0;
        std::memcpy(&y, other.data() + 2 * x, 2);
        add(dtype, x, y);
        add(dtype, x, x);
      }
    }
    const Bytes more_a = patterns(dtype, kRandom, 2), more_b = patterns(dtype, kRandom, 3);
    a.insert(a.end(), more_a.begin(), more_a.end());
    b.insert(b.end(), more_b.begin(), more_b.end());
    count += kRandom;
  }

  void add(Dtype dtype, uint64_t x, uint64_t y) {
    append(a, dtype, x);
    append(b, dtype, y);
    ++count;
  }
};

void all_casts(Dtype narrow, const std::function<void(const std::string& what, const Bytes& result)>& use) {
  for (const Dtype wide : {Dtype::float32, Dtype::float64}) {
    const std::string between = std::string(name_of(narrow)) + " and " + name_of(wide);
    Bytes from(1), to(1 + 2 * kRandom);
    const Bytes numbers = patterns(wide, kRandom, 4);
    from.insert(from.end(), numbers.begin(), numbers.end());
    kernels::narrow(narrow, to.data() + 1, wide, from.data() + 1, kRandom);
    use("narrow, " + between, to);
    Bytes back(from.size());
    kernels::widen(wide, back.data() + 1, narrow, to.data() + 1, kRandom);
    use("widen, " + between, back);
  }
}

}  // namespace

Bytes patterns(Dtype dtype, size_t count, uint64_t seed) {
  std::mt19937_64 random(seed * kDtypes + static_cast<uint64_t>(dtype));
  const std::vector<uint64_t> ends = special(dtype);
  const bool wide = dtype == Dtype::float32 || dtype == Dtype::float64;
  Bytes made;
  for (size_t i = 0; i < count; ++i) {
    const uint64_t kind = random() % 3, bits = random();
    append(made, dtype, kind == 0 ? ends[bits % ends.size()] : kind == 1 && wide ? near_one(dtype, random) : bits);
  }
  return made;
}

void all_results(Dtype dtype, const std::function<void(const std::string& what, const Bytes& result)>& use) {
  const Inputs in(dtype);
  const std::string name = name_of(dtype);
  const void *a = in.a.data() + 1, *b = in.b.data() + 1;
  Bytes out(in.a.size());
  void* to = out.data() + 1;
  for (int op = 0; op < kElementwiseOps; ++op) {
    if (dtype == Dtype::boolean && op == static_cast<int>(ReduceOp::average)) continue;
    kernels::reduce(dtype, static_cast<ReduceOp>(op), to, a, b, in.count);
    use(name + " " + name_of(static_cast<ReduceOp>(op)), out);
  }
  if (dtype == Dtype::boolean) return;
  for (const double factor : kFactors) {
    kernels::scale(dtype, to, a, factor, in.count);
    use(name + " scale by " + std::to_string(factor), out);
  }
  for (const int ranks : kRanks) {
    kernels::divide(dtype, to, a, ranks, in.count);
    use(name + " divide by " + std::to_string(ranks), out);
  }
  if (is_float(dtype) && size_of(dtype) <= 2) all_casts(dtype, use);
}

uint64_t digest_of_kernels() {
  kernels::force_variant("");
  Digest digest;
  for (int dtype = 0; dtype < kDtypes; ++dtype)
    all_results(static_cast<Dtype>(dtype), [&](const std::string& what, const Bytes& result) {
      digest.add(what).add({reinterpret_cast<const char*>(result.data()), result.size()});
    });
  return digest.value();
}

}  // namespace ringdp::tests
