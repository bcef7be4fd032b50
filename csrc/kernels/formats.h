// The float formats as bits, and what needs to be known of them: NaN, infinity, order.
//
// Those of 8 bits are OCP's (OCP 8-bit Floating Point Specification 1.0, 2023): E5M2 is a shorter float16; E4M3 has no
// infinity, and its one NaN has all bits set (the "fn" in its usual name).
//
// Included by loops.h, once per variant, and by gpu/elements.h; everything is in an unnamed namespace because each
// variant compiles it with other instructions.
#pragma once

#include "kernels/functor.h"
#include "kernels/table.h"

namespace ringdp::kernels {
namespace {

struct Float8E4m3 {
  using Bits = uint8_t;
  static constexpr Bits infinity = 0x7e, nan = 0x7f;  // the greatest number, 448, stands for infinity
  static constexpr bool has_infinity = false;
  static constexpr int mantissa = 3, bias = 7;
};
struct Float8E5m2 {
  using Bits = uint8_t;
  static constexpr Bits infinity = 0x7c, nan = 0x7e;
  static constexpr bool has_infinity = true;
  static constexpr int mantissa = 2, bias = 15;
};
struct Float16 {
  using Bits = uint16_t;
  static constexpr Bits infinity = 0x7c00, nan = 0x7e00;
};
struct Bfloat16 {
  using Bits = uint16_t;
  static constexpr Bits infinity = 0x7f80, nan = 0x7fc0;
};
struct Float32 {
  using Bits = uint32_t;
  using Value = float;
  static constexpr Bits infinity = 0x7f800000, nan = 0x7fc00000;
};
struct Float64 {
  using Bits = uint64_t;
  using Value = double;
  static constexpr Bits infinity = 0x7ff0000000000000, nan = 0x7ff8000000000000;
};

template <class To, class From>
RINGDP_FUNCTOR inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class Format>
RINGDP_FUNCTOR inline bool is_nan(typename Format::Bits x) {
  constexpr auto magnitude = static_cast<typename Format::Bits>(std::numeric_limits<typename Format::Bits>::max() / 2);
  return (x & magnitude) > Format::infinity;
}

// All patterns from it on, the sign aside, are no numbers: an infinity where the format has one, else a NaN.
template <class Format>
constexpr typename Format::Bits first_not_finite() {
  if constexpr (sizeof(typename Format::Bits) == 1)
    return Format::has_infinity ? Format::infinity : Format::nan;
  else
    return Format::infinity;
}

// The quiet NaN that is positive and has no payload, in the place of any NaN. (Value may be a vector of floats.)
template <class Value>
RINGDP_FUNCTOR inline Value canonical(Value x) {
#if defined(__CUDA_ARCH__)
  // GPUs make another NaN (0x7fffffff) where they add, and their compiler may take one NaN for another: hence by bits.
  using Format = std::conditional_t<sizeof(Value) == 4, Float32, Float64>;
  const auto bits = bits_as<typename Format::Bits>(x);
  return bits_as<Value>(is_nan<Format>(bits) ? Format::nan : bits);
#else
  constexpr Value zero{};
  return x == x ? x : zero + std::numeric_limits<float>::quiet_NaN();
#endif
}

// Bits of a float to an integer in the order of the numbers, -0 below +0; the same function leads back.
template <class Bits>
RINGDP_FUNCTOR inline std::make_signed_t<Bits> ordered(Bits x) {
  using Signed = std::make_signed_t<Bits>;
  const auto s = static_cast<Signed>(x);
  return static_cast<Signed>(s ^ ((s >> (8 * sizeof(Bits) - 1)) & std::numeric_limits<Signed>::max()));
}

}  // namespace
}  // namespace ringdp::kernels
