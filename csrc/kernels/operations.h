// What is done to one element, or to a pair of them. Plain scalar code without branches, for the compiler to vectorise.
//
// Included as formats.h is.
#pragma once

#include "kernels/convert.h"
#include "kernels/formats.h"

namespace ringdp::kernels {
namespace {

// --- integers -------------------------------------------------------------------------------------------------
// Wrapping arithmetic is that of an unsigned type of at least 32 bits (smaller ones would be promoted to signed int).
template <class T>
using Wrapping = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

template <class T>
struct IntegerSum {
  RINGDP_FUNCTOR static T of(T a, T b) {
    return static_cast<T>(static_cast<Wrapping<T>>(a) + static_cast<Wrapping<T>>(b));
  }
};
template <class T>
struct IntegerProduct {
  RINGDP_FUNCTOR static T of(T a, T b) {
    return static_cast<T>(static_cast<Wrapping<T>>(a) * static_cast<Wrapping<T>>(b));
  }
};
template <class T>
struct IntegerMin {
  RINGDP_FUNCTOR static T of(T a, T b) { return a < b ? a : b; }
};
template <class T>
struct IntegerMax {
  RINGDP_FUNCTOR static T of(T a, T b) { return a > b ? a : b; }
};

// By way of float64, towards zero, saturating; NaN (0 * inf) gives 0.
template <class T>
RINGDP_FUNCTOR inline T scaled_integer(T x, double factor) {
  constexpr auto low = static_cast<double>(std::numeric_limits<T>::min());
  constexpr auto high = static_cast<double>(std::numeric_limits<T>::max());  // int64: 2^63, one above the largest
  const double y = static_cast<double>(x) * factor;
  if (y >= high) return std::numeric_limits<T>::max();
  if (y <= low) return std::numeric_limits<T>::min();
  return y == y ? static_cast<T>(y) : T{0};
}

// Floor division: C++ rounds the quotient towards zero, which is one too high where a remainder is negative.
template <class T>
RINGDP_FUNCTOR inline T floor_divided(T x, int ranks) {
  using Wide = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  const auto wide = static_cast<Wide>(x);
  return static_cast<T>(wide / ranks - (wide % ranks < 0 ? 1 : 0));
}

// --- bool: one byte, any non-zero value is true, results are 0 and 1 ---------------------------------------------
struct Or {
  RINGDP_FUNCTOR static uint8_t of(uint8_t a, uint8_t b) { return (a | b) != 0; }
};
struct And {
  RINGDP_FUNCTOR static uint8_t of(uint8_t a, uint8_t b) { return (a != 0) & (b != 0); }
};

// --- floats -----------------------------------------------------------------------------------------------------
struct Add {
  template <class Value>
  RINGDP_FUNCTOR static Value of(Value a, Value b) {
    return a + b;
  }
};
struct Multiply {
  template <class Value>
  RINGDP_FUNCTOR static Value of(Value a, Value b) {
    return a * b;
  }
};

template <class Value, class Operation>
struct Canonical {
  RINGDP_FUNCTOR static Value of(Value a, Value b) { return canonical(Operation::of(a, b)); }
};

// Floats of 8 and 16 bits: widened to float32, combined, rounded once (which also makes NaN canonical).
template <class Format, class Operation>
struct Widened {
  using Bits = typename Format::Bits;
  RINGDP_FUNCTOR static Bits of(Bits a, Bits b) {
    return narrow(Format{}, Operation::of(widen(Format{}, a), widen(Format{}, b)));
  }
};

// On bits, so that they are exact for any format, need no widening, and know -0 from +0.
template <class Format>
struct FloatMin {
  using Bits = typename Format::Bits;
  RINGDP_FUNCTOR static Bits of(Bits a, Bits b) {
    const auto x = ordered(a), y = ordered(b);
    const auto least = static_cast<Bits>(ordered(static_cast<Bits>(x < y ? x : y)));
    return is_nan<Format>(a) || is_nan<Format>(b) ? Format::nan : least;
  }
};
template <class Format>
struct FloatMax {
  using Bits = typename Format::Bits;
  RINGDP_FUNCTOR static Bits of(Bits a, Bits b) {
    const auto x = ordered(a), y = ordered(b);
    const auto greatest = static_cast<Bits>(ordered(static_cast<Bits>(x > y ? x : y)));
    return is_nan<Format>(a) || is_nan<Format>(b) ? Format::nan : greatest;
  }
};

}  // namespace
}  // namespace ringdp::kernels
