// bfloat16 two at a time: a 32-bit lane holds an even and an odd element, and as a float32 each is that lane shifted up or
// masked. So nothing is moved between lanes, which is most of what a compiler makes of the loop over single elements
// (measured on a Zen 1, in the caches: a sum takes two thirds of the time). The same results as convert.h's.
//
// Included by loops.h only, once per variant that names its RINGDP_VECTOR_BITS (see formats.h). Little endian.
#pragma once

#include "kernels/formats.h"
#include "kernels/operations.h"

namespace ringdp::kernels {
namespace {

using PairBits = uint32_t __attribute__((vector_size(RINGDP_VECTOR_BITS / 8)));
using PairFloats = float __attribute__((vector_size(RINGDP_VECTOR_BITS / 8)));

constexpr size_t kPairElements = sizeof(PairBits) / sizeof(uint16_t);

// float32 bits whose upper half is the value rounded to nearest even, as narrow() has it; below is anything.
inline PairBits rounded(PairFloats f) {
  const auto x = bits_as<PairBits>(canonical(f));
  return x + 0x7fff + ((x >> 16) & 1);
}

template <class Operation>
PairBits of_both(PairBits a, PairBits b) {
  constexpr uint32_t upper = 0xffff0000;
  const PairBits even = rounded(Operation::of(bits_as<PairFloats>(a << 16), bits_as<PairFloats>(b << 16)));
  const PairBits odd = rounded(Operation::of(bits_as<PairFloats>(a & upper), bits_as<PairFloats>(b & upper)));
  return (even >> 16) | (odd & upper);
}

// The last elements of a tensor are padded with zeros, so that they go through the same instructions.
inline PairBits load_pairs(const Element<uint16_t>* from, size_t elements = kPairElements) {
  PairBits x{};
  std::memcpy(&x, from, elements * sizeof *from);
  return x;
}

template <class Operation>
void reduce_pairs(void* to_, const void* a_, const void* b_, size_t count) {
  auto* to = elements<uint16_t>(to_);
  auto *a = elements<uint16_t>(a_), *b = elements<uint16_t>(b_);
  size_t i = 0;
  for (; i + kPairElements <= count; i += kPairElements) {
    const PairBits sum = of_both<Operation>(load_pairs(a + i), load_pairs(b + i));
    std::memcpy(to + i, &sum, sizeof sum);
  }
  const size_t rest = count - i;
  if (rest == 0) return;
  const PairBits sum = of_both<Operation>(load_pairs(a + i, rest), load_pairs(b + i, rest));
  std::memcpy(to + i, &sum, rest * sizeof *to);
}

}  // namespace
}  // namespace ringdp::kernels
