// Groups of elements, loaded and stored in words of 16 bytes.
#pragma once

#include "kernels/formats.h"
#include "kernels/gpu/execution.h"

namespace ringdp::kernels::gpu {
namespace {

template <class T, unsigned count>
struct Group {
  static_assert(count * sizeof(T) % sizeof(uint4) == 0);
  static constexpr unsigned words = count * sizeof(T) / sizeof(uint4);
  T elements[count];
};

template <class T, unsigned count>
RINGDP_DEVICE Group<T, count> load_group(Address at) {
  struct {
    uint4 words[Group<T, count>::words];
  } raw;
  RINGDP_UNROLL
  for (unsigned i = 0; i < Group<T, count>::words; ++i) raw.words[i] = load<uint4>(at + i * sizeof(uint4));
  return bits_as<Group<T, count>>(raw);
}
template <class T, unsigned count>
RINGDP_DEVICE void store_group(Address at, const Group<T, count>& group) {
  struct Raw {
    uint4 words[Group<T, count>::words];
  };
  const Raw raw = bits_as<Raw>(group);
  RINGDP_UNROLL
  for (unsigned i = 0; i < Group<T, count>::words; ++i) store(at + i * sizeof(uint4), raw.words[i]);
}

RINGDP_DEVICE bool fits_words(Address at) { return at % sizeof(uint4) == 0; }

}  // namespace
}  // namespace ringdp::kernels::gpu
