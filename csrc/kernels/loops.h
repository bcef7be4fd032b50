// The loops over elements, and the table of them. Each variant_*.cc includes this once, with the instructions it may
// use, and publishes `kTable` under its own name.
#pragma once

#include "kernels/convert.h"
#include "kernels/exact.h"
#include "kernels/formats.h"
#include "kernels/operations.h"

// `to` may be exactly `a` or `b`: the compiler need not fear that a store changes a later load.
#if defined(__clang__)
#define RINGDP_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define RINGDP_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace ringdp::kernels {
namespace {

// An element at any address: tensors come as byte ranges, and views of them need not be aligned.
template <class T>
struct __attribute__((packed, may_alias)) Element {
  T value;
};

template <class T>
Element<T>* elements(void* p) {
  return static_cast<Element<T>*>(p);
}
template <class T>
const Element<T>* elements(const void* p) {
  return static_cast<const Element<T>*>(p);
}

template <class T, class Operation>
void reduce_loop(void* to_, const void* a_, const void* b_, size_t count) {
  auto* to = elements<T>(to_);
  auto *a = elements<T>(a_), *b = elements<T>(b_);
  RINGDP_INDEPENDENT
  for (size_t i = 0; i < count; ++i) to[i].value = Operation::of(a[i].value, b[i].value);
}

template <class T, class Function>
void map_loop(void* to_, const void* from_, size_t count, Function function) {
  auto* to = elements<T>(to_);
  auto* from = elements<T>(from_);
  RINGDP_INDEPENDENT
  for (size_t i = 0; i < count; ++i) to[i].value = function(from[i].value);
}

// --- scale and divide -----------------------------------------------------------------------------------------
template <class T>
void scale_integers(void* to, const void* from, double factor, size_t count) {
  map_loop<T>(to, from, count, [factor](T x) { return scaled_integer(x, factor); });
}
template <class T>
void divide_integers(void* to, const void* from, int ranks, size_t count) {
  map_loop<T>(to, from, count, [ranks](T x) { return floor_divided(x, ranks); });
}

template <class Value>
void scale_floats(void* to, const void* from, double factor, size_t count) {
  const auto f = static_cast<Value>(factor);
  map_loop<Value>(to, from, count, [f](Value x) { return canonical(x * f); });
}
template <class Value>
void divide_floats(void* to, const void* from, int ranks, size_t count) {
  const auto n = static_cast<Value>(ranks);
  map_loop<Value>(to, from, count, [n](Value x) { return canonical(x / n); });
}

template <class Format>
void scale_narrow(void* to, const void* from, double factor, size_t count) {
  const auto f = static_cast<float>(factor);
  using Bits = typename Format::Bits;
  map_loop<Bits>(to, from, count, [f](Bits x) { return narrow(Format{}, widen(Format{}, x) * f); });
}
template <class Format>
void divide_narrow(void* to, const void* from, int ranks, size_t count) {
  const auto n = static_cast<float>(ranks);
  using Bits = typename Format::Bits;
  map_loop<Bits>(to, from, count, [n](Bits x) { return narrow(Format{}, widen(Format{}, x) / n); });
}

// --- casts ----------------------------------------------------------------------------------------------------
template <class Format, class Value>
void narrow_loop(void* to_, const void* from_, size_t count) {
  auto* to = elements<typename Format::Bits>(to_);
  auto* from = elements<Value>(from_);
  RINGDP_INDEPENDENT
  for (size_t i = 0; i < count; ++i) to[i].value = narrow(Format{}, static_cast<float>(from[i].value));
}
template <class Format, class Value>
void widen_loop(void* to_, const void* from_, size_t count) {
  auto* to = elements<Value>(to_);
  auto* from = elements<typename Format::Bits>(from_);
  RINGDP_INDEPENDENT
  for (size_t i = 0; i < count; ++i) to[i].value = canonical(widen(Format{}, from[i].value));
}
template <class Format, class Value>
constexpr Casts casts_of() {
  return {narrow_loop<Format, Value>, widen_loop<Format, Value>};
}

// --- what is not finite ---------------------------------------------------------------------------------------
// A block is looked at as a whole, which leaves the compiler a loop without a way out; then, element by element, the one
// that has something.
constexpr size_t kFindBlock = 2048;

template <class Format>
size_t find_not_finite(const void* from_, size_t count) {
  using Bits = typename Format::Bits;
  constexpr Bits sign = static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1)), magnitude = static_cast<Bits>(sign - 1);
  // Added to a magnitude, it carries into the sign where that is no number, and there alone.
  constexpr Bits carry = static_cast<Bits>(sign - first_not_finite<Format>());
  auto* from = elements<Bits>(from_);
  for (size_t begin = 0; begin < count; begin += kFindBlock) {
    const size_t end = count - begin < kFindBlock ? count : begin + kFindBlock;
    Bits seen = 0;
    for (size_t i = begin; i < end; ++i) seen |= static_cast<Bits>((from[i].value & magnitude) + carry);
    if (!(seen & sign)) continue;
    size_t at = begin;
    while (!(static_cast<Bits>((from[at].value & magnitude) + carry) & sign)) ++at;
    return at;
  }
  return count;
}

// --- rows of the table: Average (which adds), Sum, Min, Max, Product; scale; divide --------------------------------
template <class T>
constexpr Row integer_row() {
  constexpr Reduce sum = reduce_loop<T, IntegerSum<T>>;
  return {{sum, sum, reduce_loop<T, IntegerMin<T>>, reduce_loop<T, IntegerMax<T>>, reduce_loop<T, IntegerProduct<T>>},
          scale_integers<T>,
          divide_integers<T>,
          {},
          {},
          nullptr};
}

template <class Format>
constexpr Row float_row() {
  using Bits = typename Format::Bits;
  using Value = typename Format::Value;
  constexpr Reduce sum = reduce_loop<Value, Canonical<Value, Add>>;
  return {{sum, sum, reduce_loop<Bits, FloatMin<Format>>, reduce_loop<Bits, FloatMax<Format>>,
           reduce_loop<Value, Canonical<Value, Multiply>>},
          scale_floats<Value>,
          divide_floats<Value>,
          {},
          {},
          find_not_finite<Format>};
}

template <class Format>
constexpr Row narrow_row(Reduce sum = reduce_loop<typename Format::Bits, Widened<Format, Add>>) {
  using Bits = typename Format::Bits;
  return {{sum, sum, reduce_loop<Bits, FloatMin<Format>>, reduce_loop<Bits, FloatMax<Format>>,
           reduce_loop<Bits, Widened<Format, Multiply>>},
          scale_narrow<Format>,
          divide_narrow<Format>,
          casts_of<Format, float>(),
          casts_of<Format, double>(),
          find_not_finite<Format>};
}

constexpr Row bool_row() {
  constexpr Reduce either = reduce_loop<uint8_t, Or>, both = reduce_loop<uint8_t, And>;
  return {{nullptr, either, both, either, both}, nullptr, nullptr, {}, {}, nullptr};
}

}  // namespace
}  // namespace ringdp::kernels

#if RINGDP_HARDWARE_FLOAT16
#include "kernels/hardware_float16.h"
#define RINGDP_FLOAT16_ROW hardware_float16_row()
#else
#define RINGDP_FLOAT16_ROW narrow_row<Float16>()
#endif

#if defined(RINGDP_VECTOR_BITS)
#include "kernels/bfloat16_pairs.h"
#define RINGDP_BFLOAT16_ROW narrow_row<Bfloat16>(reduce_pairs<Add>)
#else
#define RINGDP_BFLOAT16_ROW narrow_row<Bfloat16>()
#endif

namespace ringdp::kernels {
namespace {

// Constant, so that no code of this variant runs before its turn.
constexpr Table kTable = {{
    bool_row(),
    integer_row<uint8_t>(),
    integer_row<int8_t>(),
    integer_row<int16_t>(),
    integer_row<int32_t>(),
    integer_row<int64_t>(),
    RINGDP_FLOAT16_ROW,
    RINGDP_BFLOAT16_ROW,
    float_row<Float32>(),
    float_row<Float64>(),
    narrow_row<Float8E4m3>(),
    narrow_row<Float8E5m2>(),
}};

}  // namespace
}  // namespace ringdp::kernels
