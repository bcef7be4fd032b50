// Each dtype as its elements lie in memory, and what kernels.h says of them: how they are scaled, divided and combined.
// The arithmetic is that of the CPU's kernels (operations.h), so that both give the same bits.
#pragma once

#include "kernels/convert.h"
#include "kernels/formats.h"
#include "kernels/operations.h"

namespace ringdp::kernels::gpu {
namespace {

template <class T>
struct Integer {
  using Bits = T;
  using Sum = IntegerSum<T>;
  using Product = IntegerProduct<T>;
  using Min = IntegerMin<T>;
  using Max = IntegerMax<T>;
  using Factor = double;
  static constexpr bool is_float = false;
  RINGDP_FUNCTOR static T scaled(T x, Factor f) { return scaled_integer(x, f); }
  RINGDP_FUNCTOR static T divided(T x, int ranks) { return floor_divided(x, ranks); }
};

struct Bool {
  using Bits = uint8_t;
  using Sum = Or;
  using Product = And;
  using Min = And;
  using Max = Or;
  static constexpr bool is_float = false;
};

// Of 8 and 16 bits: in float32, rounded once.
template <class Format>
struct Narrow {
  using Bits = typename Format::Bits;
  using Sum = Widened<Format, Add>;
  using Product = Widened<Format, Multiply>;
  using Min = FloatMin<Format>;
  using Max = FloatMax<Format>;
  using Factor = float;
  using Stored = Format;
  static constexpr bool is_float = true;
  RINGDP_FUNCTOR static Bits scaled(Bits x, Factor f) { return narrow(Format{}, widen(Format{}, x) * f); }
  RINGDP_FUNCTOR static Bits divided(Bits x, int ranks) {
    return narrow(Format{}, widen(Format{}, x) / static_cast<float>(ranks));
  }
};

template <class Format, class Operation>
struct OnValues {
  using Bits = typename Format::Bits;
  using Value = typename Format::Value;
  RINGDP_FUNCTOR static Bits of(Bits a, Bits b) {
    return bits_as<Bits>(Canonical<Value, Operation>::of(bits_as<Value>(a), bits_as<Value>(b)));
  }
};

template <class Format>
struct Wide {
  using Bits = typename Format::Bits;
  using Value = typename Format::Value;
  using Sum = OnValues<Format, Add>;
  using Product = OnValues<Format, Multiply>;
  using Min = FloatMin<Format>;
  using Max = FloatMax<Format>;
  using Factor = Value;
  using Stored = Format;
  static constexpr bool is_float = true;
  RINGDP_FUNCTOR static Bits scaled(Bits x, Factor f) { return bits_as<Bits>(canonical(bits_as<Value>(x) * f)); }
  RINGDP_FUNCTOR static Bits divided(Bits x, int ranks) {
    return bits_as<Bits>(canonical(bits_as<Value>(x) / static_cast<Value>(ranks)));
  }
};

// 1 for an infinity or a NaN.
template <class Stored>
RINGDP_FUNCTOR inline unsigned is_not_finite(typename Stored::Bits x) {
  constexpr auto magnitude = static_cast<typename Stored::Bits>(std::numeric_limits<typename Stored::Bits>::max() / 2);
  return (x & magnitude) >= first_not_finite<Stored>();
}

// --- from one dtype to another, times a factor: the product is taken in the wider of the two ---------------------

template <class From, class To>
struct Cast;

template <class Format, class WideFormat>
struct Cast<Wide<WideFormat>, Narrow<Format>> {
  using Value = typename WideFormat::Value;
  RINGDP_FUNCTOR static uint16_t of(typename WideFormat::Bits x, Value f) {
    return narrow(Format{}, static_cast<float>(bits_as<Value>(x) * f));
  }
};

template <class Format, class WideFormat>
struct Cast<Narrow<Format>, Wide<WideFormat>> {
  using Value = typename WideFormat::Value;
  RINGDP_FUNCTOR static typename WideFormat::Bits of(uint16_t x, Value f) {
    return bits_as<typename WideFormat::Bits>(canonical(static_cast<Value>(widen(Format{}, x)) * f));
  }
};

}  // namespace
}  // namespace ringdp::kernels::gpu

// DO(name, type) for every dtype of a kind.
#define RINGDP_INTEGER_ELEMENTS(DO) \
  DO(uint8, Integer<uint8_t>)       \
  DO(int8, Integer<int8_t>)         \
  DO(int16, Integer<int16_t>)       \
  DO(int32, Integer<int32_t>)       \
  DO(int64, Integer<int64_t>)
#define RINGDP_NARROW_ELEMENTS(DO)      \
  DO(float16, Narrow<Float16>)          \
  DO(bfloat16, Narrow<Bfloat16>)        \
  DO(float8_e4m3fn, Narrow<Float8E4m3>) \
  DO(float8_e5m2, Narrow<Float8E5m2>)
#define RINGDP_WIDE_ELEMENTS(DO) \
  DO(float32, Wide<Float32>)     \
  DO(float64, Wide<Float64>)
#define RINGDP_FLOAT_ELEMENTS(DO) RINGDP_NARROW_ELEMENTS(DO) RINGDP_WIDE_ELEMENTS(DO)
