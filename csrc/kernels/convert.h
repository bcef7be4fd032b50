// Floats of 8 and 16 bits to float32 and back, one element at a time, in integer arithmetic that any CPU has and that the
// compiler vectorises. widen() is exact. narrow() rounds to nearest even, overflows to infinity (to NaN where the format has
// none), makes subnormals, and makes the canonical NaN of any.
//
// Included as formats.h is.
#pragma once

#include "kernels/formats.h"

namespace ringdp::kernels {
namespace {

// Choices without a condition: gcc 12 makes branches of conditional expressions here, even of masks made from a
// comparison, and then does not vectorise (measured with SSE2: 6 ns an element instead of 1.8).
RINGDP_FUNCTOR inline uint32_t if_below(uint32_t x, uint32_t limit) {  // all ones if x < limit, else 0; both below 2^31
  return static_cast<uint32_t>(static_cast<int32_t>(x - limit) >> 31);
}
RINGDP_FUNCTOR inline uint32_t select(uint32_t mask, uint32_t yes, uint32_t no) { return no ^ ((yes ^ no) & mask); }

// bfloat16 is the upper half of a float32.
RINGDP_FUNCTOR inline float widen(Bfloat16, uint16_t h) { return bits_as<float>(uint32_t{h} << 16); }

// Adding just under half of the last kept place, and one more if that place is odd, carries exactly where rounding to
// nearest even goes up. The canonical NaN has nothing below the kept places and stays itself.
RINGDP_FUNCTOR inline uint16_t narrow(Bfloat16, float f) {
  const auto x = bits_as<uint32_t>(canonical(f));
  return static_cast<uint16_t>((x + 0x7fff + ((x >> 16) & 1)) >> 16);
}

// float16: 1 sign, 5 exponent (bias 15) and 10 mantissa bits; float32: 1, 8 (bias 127) and 23.
constexpr uint32_t kRebias = uint32_t{127 - 15} << 23;

RINGDP_FUNCTOR inline float widen(Float16, uint16_t h) {
  const uint32_t sign = (h & 0x8000u) << 16, magnitude = h & 0x7fffu;
  const uint32_t normal = (magnitude << 13) + kRebias;
  const uint32_t special = normal + kRebias;  // infinity and NaN: exponent 31 becomes 255
  const auto subnormal = bits_as<uint32_t>(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  const uint32_t finite = select(if_below(magnitude, 0x0400), subnormal, normal);
  return bits_as<float>(sign | select(if_below(magnitude, Float16::infinity), finite, special));
}

RINGDP_FUNCTOR inline uint16_t narrow(Float16, float f) {
  constexpr uint32_t least_normal = 0x38800000, too_large = 0x47800000, one_half = 0x3f000000;  // 2^-14, 2^16, 2^-1
  const auto x = bits_as<uint32_t>(f);
  const uint32_t sign = (x >> 16) & 0x8000, magnitude = x & 0x7fffffff;
  // As for bfloat16; what rounds up beyond the largest finite number, 65504, carries into infinity.
  const uint32_t normal = (magnitude - kRebias + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // The last place of 0.5f is that of a subnormal, 2^-24: the addition rounds, and the sum's mantissa is the result.
  const uint32_t subnormal = bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) - one_half;
  const uint32_t finite = select(if_below(magnitude, least_normal), subnormal, normal);
  const uint32_t number = sign | select(if_below(magnitude, too_large), finite, Float16::infinity);
  return static_cast<uint16_t>(select(if_below(Float32::infinity, magnitude), Float16::nan, number));
}

// E5M2 is the upper half of a float16.
RINGDP_FUNCTOR inline float widen(Float8E5m2, uint8_t h) { return widen(Float16{}, static_cast<uint16_t>(h << 8)); }

RINGDP_FUNCTOR inline float widen(Float8E4m3, uint8_t h) {
  const uint32_t sign = (h & 0x80u) << 24, magnitude = h & 0x7fu;
  const uint32_t normal = (magnitude << 20) + (uint32_t{127 - 7} << 23);
  const auto subnormal = bits_as<uint32_t>(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-9f);
  const uint32_t finite = select(if_below(magnitude, 0x08), subnormal, normal);
  return bits_as<float>(sign | select(if_below(magnitude, Float8E4m3::nan), finite, Float32::nan));
}

// As for float16, for any number of mantissa bits.
template <class Format>
RINGDP_FUNCTOR inline uint8_t narrow_to_8(float f, uint32_t too_large) {
  constexpr int dropped = 23 - Format::mantissa;
  constexpr uint32_t rebias = uint32_t{127 - Format::bias} << 23, least_normal = rebias + (1u << 23);
  // The float32 whose last place is that of a subnormal.
  constexpr uint32_t anchor = uint32_t{127 + 1 - Format::bias + dropped} << 23;
  const auto x = bits_as<uint32_t>(f);
  const uint32_t sign = (x >> 24) & 0x80, magnitude = x & 0x7fffffff;
  const uint32_t normal = (magnitude - rebias + (1u << (dropped - 1)) - 1 + ((magnitude >> dropped) & 1)) >> dropped;
  const uint32_t subnormal = bits_as<uint32_t>(bits_as<float>(magnitude) + bits_as<float>(anchor)) - anchor;
  const uint32_t finite = select(if_below(magnitude, least_normal), subnormal, normal);
  constexpr uint32_t overflow = Format::has_infinity ? Format::infinity : Format::nan;
  const uint32_t number = select(if_below(magnitude, too_large), finite, overflow);
  const uint32_t kept = select(if_below(Float32::infinity, magnitude), Format::nan, number);
  return static_cast<uint8_t>(select(if_below(Format::infinity, kept), Format::nan, sign | kept));
}

// What is below these, and still rounds up beyond the largest number, carries into infinity, or NaN.
RINGDP_FUNCTOR inline uint8_t narrow(Float8E5m2, float f) { return narrow_to_8<Float8E5m2>(f, 0x47800000); }  // 2^16
RINGDP_FUNCTOR inline uint8_t narrow(Float8E4m3, float f) { return narrow_to_8<Float8E4m3>(f, 0x43f00000); }  // 480

}  // namespace
}  // namespace ringdp::kernels
