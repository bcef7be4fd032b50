// float16 where the CPU converts it to float32 and back, kLanes elements in one instruction: the same results as
// convert.h's, in a loop of their own because compilers do not vectorise these instructions by themselves.
//
// Included by loops.h only, once per variant (see formats.h).
#pragma once

#include "kernels/formats.h"
#include "kernels/operations.h"

namespace ringdp::kernels {
namespace {

// Vectors on which arithmetic and comparison go lane by lane.
#if RINGDP_AARCH64
using Floats = float32x4_t;
using Halves = float16x4_t;
inline Floats widen(Halves h) { return vcvt_f32_f16(h); }
inline Halves narrow(Floats f) { return vcvt_f16_f32(f); }  // rounds as the thread does: to nearest even by default
#elif RINGDP_VECTOR_BITS == 512
using Floats = float __attribute__((vector_size(64)));
using Halves = __m256i;
inline Floats widen(Halves h) { return _mm512_maskz_cvtph_ps(0xffff, h); }  // gcc 12 warns of the unmasked form
inline Halves narrow(Floats f) { return _mm512_maskz_cvtps_ph(0xffff, f, _MM_FROUND_TO_NEAREST_INT); }
#else
using Floats = float __attribute__((vector_size(32)));
using Halves = __m128i;
inline Floats widen(Halves h) { return _mm256_cvtph_ps(h); }
inline Halves narrow(Floats f) { return _mm256_cvtps_ph(f, _MM_FROUND_TO_NEAREST_INT); }
#endif

constexpr size_t kLanes = sizeof(Halves) / sizeof(uint16_t);

// The last lanes of a tensor are padded with zeros, so that they go through the same instructions.
inline Floats load(const Element<uint16_t>* from, size_t lanes = kLanes) {
  Halves x{};
  std::memcpy(&x, from, lanes * sizeof *from);
  return widen(x);
}
inline void store(Element<uint16_t>* to, Floats f, size_t lanes = kLanes) {
  const Halves x = narrow(canonical(f));
  std::memcpy(to, &x, lanes * sizeof *to);
}

template <class Operation>
void reduce_lanes(void* to_, const void* a_, const void* b_, size_t count) {
  auto* to = elements<uint16_t>(to_);
  auto *a = elements<uint16_t>(a_), *b = elements<uint16_t>(b_);
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, Operation::of(load(a + i), load(b + i)));
  const size_t rest = count - i;
  if (rest > 0) store(to + i, Operation::of(load(a + i, rest), load(b + i, rest)), rest);
}

template <class Function>
void map_lanes(void* to_, const void* from_, size_t count, Function function) {
  auto* to = elements<uint16_t>(to_);
  auto* from = elements<uint16_t>(from_);
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, function(load(from + i)));
  const size_t rest = count - i;
  if (rest > 0) store(to + i, function(load(from + i, rest)), rest);
}

inline void scale_lanes(void* to, const void* from, double factor, size_t count) {
  const auto f = static_cast<float>(factor);
  map_lanes(to, from, count, [f](Floats x) { return x * f; });
}
inline void divide_lanes(void* to, const void* from, int ranks, size_t count) {
  const auto n = static_cast<float>(ranks);
  map_lanes(to, from, count, [n](Floats x) { return x / n; });
}

// --- casts: kLanes wide elements at a time ------------------------------------------------------------------------------
using Doubles = double __attribute__((vector_size(kLanes * sizeof(double))));

template <class Value, class Vector>
void narrow_lanes(void* to_, const void* from_, size_t count) {
  auto* to = elements<uint16_t>(to_);
  auto* from = elements<Value>(from_);
  const auto cast = [&](size_t i, size_t lanes) {
    Vector x{};
    std::memcpy(&x, from + i, lanes * sizeof *from);
    store(to + i, __builtin_convertvector(x, Floats), lanes);
  };
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) cast(i, kLanes);
  if (i < count) cast(i, count - i);
}

template <class Value, class Vector>
void widen_lanes(void* to_, const void* from_, size_t count) {
  auto* to = elements<Value>(to_);
  auto* from = elements<uint16_t>(from_);
  const auto cast = [&](size_t i, size_t lanes) {
    const auto x = __builtin_convertvector(canonical(load(from + i, lanes)), Vector);
    std::memcpy(to + i, &x, lanes * sizeof *to);
  };
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) cast(i, kLanes);
  if (i < count) cast(i, count - i);
}

constexpr Row hardware_float16_row() {
  constexpr Reduce sum = reduce_lanes<Add>;
  return {{sum, sum, reduce_loop<uint16_t, FloatMin<Float16>>, reduce_loop<uint16_t, FloatMax<Float16>>,
           reduce_lanes<Multiply>},
          scale_lanes,
          divide_lanes,
          {narrow_lanes<float, Floats>, widen_lanes<float, Floats>},
          {narrow_lanes<double, Doubles>, widen_lanes<double, Doubles>},
          find_not_finite<Float16>};
}

}  // namespace
}  // namespace ringdp::kernels
