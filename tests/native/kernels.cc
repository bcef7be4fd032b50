// The kernels: the same bits from every variant, and results that one can say without a reference.
#include "kernels/kernels.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "check.h"
#include "kernel_bits.h"
#include "kernels/hash.h"
#include "kernels/simd.h"

using namespace ringdp;
using namespace ringdp::tests;

namespace {

// Runs `act` under each variant that this CPU has.
template <class Act>
void under_each_variant(const Act& act) {
  for (const kernels::Variant& v : kernels::kVariants) {
    if (!v.runs_here()) continue;
    CHECK(kernels::force_variant(v.name));
    CHECK(std::strcmp(kernels::variant(), v.name) == 0, kernels::variant());
    act(v.name);
  }
  kernels::force_variant("");
}

std::vector<Bytes> portable_results(Dtype dtype) {
  std::vector<Bytes> results;
  CHECK(kernels::force_variant("portable"));
  all_results(dtype, [&](const std::string&, const Bytes& result) { results.push_back(result); });
  return results;
}

// --- small integers, which every dtype holds exactly ----------------------------------------------------------------

uint16_t bfloat16_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return static_cast<uint16_t>(bits >> 16);
}

// Of 0 … 255.
uint16_t float16_of(int x) {
  if (x == 0) return 0;
  const int exponent = std::ilogb(x);
  return static_cast<uint16_t>((15 + exponent) << 10 | ((x << (10 - exponent)) & 0x3ff));
}

template <class T>
void append(Bytes& to, T x) {
  to.resize(to.size() + sizeof x);
  std::memcpy(to.data() + to.size() - sizeof x, &x, sizeof x);
}

// A bool holds whether x is not 0.
void append(Bytes& to, Dtype dtype, int x) {
  switch (dtype) {
    case Dtype::boolean:
      return append(to, static_cast<uint8_t>(x != 0));
    case Dtype::uint8:
    case Dtype::int8:
      return append(to, static_cast<int8_t>(x));
    case Dtype::int16:
      return append(to, static_cast<int16_t>(x));
    case Dtype::int32:
      return append(to, static_cast<int32_t>(x));
    case Dtype::int64:
      return append(to, static_cast<int64_t>(x));
    case Dtype::float16:
      return append(to, float16_of(x));
    case Dtype::bfloat16:
      return append(to, bfloat16_of(static_cast<float>(x)));
    case Dtype::float32:
      return append(to, static_cast<float>(x));
    case Dtype::float64:
      return append(to, static_cast<double>(x));
    default:
      fail(ErrorKind::internal, "not for ", name_of(dtype));
  }
}

int applied(ReduceOp op, int a, int b) {
  switch (op) {
    case ReduceOp::average:
    case ReduceOp::sum:
      return a + b;
    case ReduceOp::min:
      return std::min(a, b);
    case ReduceOp::max:
      return std::max(a, b);
    case ReduceOp::product:
      return a * b;
    case ReduceOp::adasum:
      break;
  }
  return 0;
}

Bytes encoded(Dtype dtype, const std::vector<int>& numbers) {
  Bytes made;
  for (const int x : numbers) append(made, dtype, x);
  return made;
}

// --- rounding to 16 bits --------------------------------------------------------------------------------------------

// What the bits of a finite, non-negative number mean; those of infinity: the power of two that would come next.
double meaning(Dtype dtype, int bits) {
  const int mantissa = dtype == Dtype::float16 ? 10 : 7, bias = dtype == Dtype::float16 ? 15 : 127;
  const int exponent = bits >> mantissa, fraction = bits & ((1 << mantissa) - 1);
  if (exponent == 0) return std::ldexp(fraction, 1 - bias - mantissa);
  return std::ldexp((1 << mantissa) + fraction, exponent - bias - mantissa);
}

// `factor` rounded to the dtype: through the vectors of a variant and through what is left over at the end.
void check_rounds(Dtype dtype, double factor, int wanted, const char* variant) {
  constexpr size_t kCount = 17;
  const uint16_t one = dtype == Dtype::float16 ? 0x3c00 : 0x3f80;
  uint16_t from[kCount], to[kCount];
  for (uint16_t& x : from) x = one;
  const auto check = [&](const char* how) {
    for (const uint16_t got : to)
      CHECK(got == wanted, variant, ", ", how, ": ", factor, " to ", name_of(dtype), " gave ", got, ", expected ",
            wanted);
  };
  kernels::scale(dtype, to, from, factor, kCount);
  check("scaled");
  const std::vector<float> float32(kCount, static_cast<float>(factor));
  kernels::narrow(dtype, to, Dtype::float32, float32.data(), kCount);
  check("from float32");
  const std::vector<double> float64(kCount, factor);
  kernels::narrow(dtype, to, Dtype::float64, float64.data(), kCount);
  check("from float64");
}

// All patterns of the dtype, widened: those of finite numbers mean the same, infinities and NaNs stay, and all come back.
template <class Value>
void check_widens(Dtype dtype, Dtype wide, unsigned infinity, unsigned quiet, const char* variant) {
  std::vector<uint16_t> all(65536), back(65536);
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
  std::vector<Value> widened(all.size());
  kernels::widen(wide, widened.data(), dtype, all.data(), all.size());
  kernels::narrow(dtype, back.data(), wide, widened.data(), all.size());
  for (const uint16_t bits : all) {
    const unsigned magnitude = bits & 0x7fffu;
    const double got = static_cast<double>(widened[bits]), sign = bits == magnitude ? 1 : -1;
    const double number = magnitude == infinity ? INFINITY : meaning(dtype, static_cast<int>(magnitude));
    const bool is_nan = magnitude > infinity;
    CHECK(is_nan ? std::isnan(got) : got == sign * number && std::signbit(got) == (sign < 0), variant, ": ",
          name_of(dtype), " ", bits, " became ", got);
    CHECK(back[bits] == (is_nan ? quiet : bits), variant, ": ", name_of(dtype), " ", bits, " came back as ",
          back[bits]);
  }
}

}  // namespace

TEST(every_variant_gives_the_same_bits) {
  for (int d = 0; d < kDtypes; ++d) {
    const auto dtype = static_cast<Dtype>(d);
    const std::vector<Bytes> wanted = portable_results(dtype);
    const bool has_casts = dtype == Dtype::float16 || dtype == Dtype::bfloat16 || is_float8(dtype);
    CHECK(wanted.size() == (dtype == Dtype::boolean ? 4u : has_casts ? 29u : 25u), wanted.size());
    under_each_variant([&](const char* variant) {
      size_t i = 0;
      all_results(dtype, [&](const std::string& what, const Bytes& result) {
        CHECK(result == wanted[i], what, ": ", variant, " and portable differ");
        ++i;
      });
      CHECK(i == wanted.size());
    });
  }
}

// But in floats of 8 bits, which hold few of them: tests/unit/test_kernels.py has all pairs of their patterns.
TEST(small_integers_are_reduced_exactly) {
  std::vector<int> a, b;
  for (int x = 0; x < 12; ++x)
    for (int y = 0; y < 10; ++y) a.push_back(x), b.push_back(y);
  for (int d = 0; d < kDtypes; ++d)
    for (int o = 0; o < kElementwiseOps; ++o) {
      const auto dtype = static_cast<Dtype>(d);
      const auto op = static_cast<ReduceOp>(o);
      if (is_float8(dtype) || (dtype == Dtype::boolean && op == ReduceOp::average)) continue;
      std::vector<int> results;
      for (size_t i = 0; i < a.size(); ++i) results.push_back(applied(op, a[i], b[i]));
      const Bytes x = encoded(dtype, a), y = encoded(dtype, b), wanted = encoded(dtype, results);
      under_each_variant([&](const char* variant) {
        Bytes to(wanted.size());
        kernels::reduce(dtype, op, to.data(), x.data(), y.data(), a.size());
        CHECK(to == wanted, variant, ": ", name_of(dtype), " ", name_of(op));
        to = x;
        kernels::reduce(dtype, op, to.data(), to.data(), y.data(), a.size());
        CHECK(to == wanted, variant, ": ", name_of(dtype), " ", name_of(op), " in place");
      });
    }
}

TEST(averages_and_scales_of_small_integers_are_exact) {
  std::vector<int> sums, thirds, twice;
  for (int x = 0; x < 42; ++x) sums.push_back(3 * x), thirds.push_back(x), twice.push_back(2 * x);
  for (int d = 1; d < kDtypes; ++d) {  // bool has neither
    const auto dtype = static_cast<Dtype>(d);
    if (is_float8(dtype)) continue;
    const Bytes x = encoded(dtype, sums), third = encoded(dtype, thirds), doubled = encoded(dtype, twice);
    under_each_variant([&](const char* variant) {
      Bytes to(x.size());
      kernels::divide(dtype, to.data(), x.data(), 3, sums.size());
      CHECK(to == third, variant, ": ", name_of(dtype), " divided");
      kernels::scale(dtype, to.data(), third.data(), 2, sums.size());
      CHECK(to == doubled, variant, ": ", name_of(dtype), " scaled");
    });
  }
}

// Between two neighbours a and b of a 16-bit format: everything up to the middle is a, everything above it b, and the
// middle is whichever is even. Beyond the largest number b is infinity.
TEST(every_boundary_of_rounding_to_16_bits_is_where_ieee_754_has_it) {
  for (const Dtype dtype : {Dtype::float16, Dtype::bfloat16})
    under_each_variant([&](const char* variant) {
      const int infinity = dtype == Dtype::float16 ? 0x7c00 : 0x7f80;
      for (int bits = 0; bits < infinity; ++bits) {
        const double a = meaning(dtype, bits), b = meaning(dtype, bits + 1);
        const auto middle = static_cast<float>((a + b) / 2);
        CHECK(middle == (a + b) / 2, "a float32 holds the middle");
        for (const int sign : {0, 0x8000}) {
          const auto check = [&](double x, int wanted) { check_rounds(dtype, sign ? -x : x, wanted | sign, variant); };
          check(a, bits);
          check(std::nextafter(middle, 0.f), bits);
          check(middle, bits + bits % 2);
          check(std::nextafter(middle, INFINITY), bits + 1);
        }
      }
    });
}

TEST(every_16_bit_pattern_survives_widening) {
  for (const Dtype dtype : {Dtype::float16, Dtype::bfloat16}) {
    const unsigned infinity = dtype == Dtype::float16 ? 0x7c00 : 0x7f80,
                   quiet = dtype == Dtype::float16 ? 0x7e00 : 0x7fc0;
    std::vector<uint16_t> all(65536), to(65536);
    for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
    under_each_variant([&](const char* variant) {
      kernels::scale(dtype, to.data(), all.data(), 1.0, all.size());
      for (size_t i = 0; i < all.size(); ++i)
        CHECK(to[i] == ((i & 0x7fff) > infinity ? quiet : i), variant, ": ", name_of(dtype), " ", i, " became ", to[i]);
      check_widens<float>(dtype, Dtype::float32, infinity, quiet, variant);
      check_widens<double>(dtype, Dtype::float64, infinity, quiet, variant);
    });
  }
}

TEST(an_unknown_variant_is_refused) {
  CHECK(!kernels::force_variant("abacus"));
  CHECK(error_of([] { kernels::scale(Dtype::boolean, nullptr, nullptr, 2, 0); }).find("bool cannot be scaled") !=
        std::string::npos);
}

TEST(the_first_that_is_not_finite_is_found_by_every_variant) {
  constexpr size_t kCount = 5000;
  under_each_variant([&](const char* variant) {
    std::vector<float> numbers(kCount, 3e38f);
    std::vector<double> wide(kCount, -1e308);
    for (const size_t at : {size_t{4999}, size_t{2048}, size_t{2047}, size_t{0}}) {
      CHECK(kernels::find_not_finite(Dtype::float32, numbers.data(), at) == at, variant);
      numbers[at] = -INFINITY;
      wide[at] = NAN;
      CHECK(kernels::find_not_finite(Dtype::float32, numbers.data(), kCount) == at, variant, ", float32 at ", at);
      CHECK(kernels::find_not_finite(Dtype::float64, wide.data(), kCount) == at, variant, ", float64 at ", at);
    }
  });
}

// Known values of XXH64.
TEST(hashes_are_the_same_on_every_machine) {
  CHECK(kernels::hash("", 0, 0) == 0xef46db3751d8e999);
  CHECK(kernels::hash("abc", 3, 0) == 0x44bc2cf5ad770999);
}
