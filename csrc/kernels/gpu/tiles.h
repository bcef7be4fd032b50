// One tile: `to[i] = function(from[i]...)`, in words of 16 bytes where all addresses allow it, else by elements.
#pragma once

#include "kernels/gpu/group.h"

namespace ringdp::kernels::gpu {
namespace {

// An array in memory of the GPU.
template <class T>
struct Array {
  Address at;
  RINGDP_FUNCTOR Array from(uint64_t element) const { return {at + element * sizeof(T)}; }
};

// As many elements as fill at least one word of 16 bytes, of each type.
template <class... T>
constexpr unsigned group_size() {
  unsigned size = sizeof(uint4);  // of bytes
  for (const unsigned bytes : {unsigned(sizeof(T))...}) size = size < bytes ? size : bytes;
  return sizeof(uint4) / size;
}

template <class T>
RINGDP_DEVICE T element(Array<T> array, unsigned i) {
  return load<T>(array.from(i).at);
}

template <unsigned size, class To, class Function, class... From>
RINGDP_DEVICE void map_group(Array<To> to, Function function, const Group<From, size>&... from) {
  Group<To, size> result;
  RINGDP_UNROLL
  for (unsigned k = 0; k < size; ++k) result.elements[k] = function(from.elements[k]...);
  store_group(to.at, result);
}

// What one thread does of `count` elements, a tile at most.
template <class To, class Function, class... From>
RINGDP_DEVICE void map_tile(unsigned thread, unsigned count, Array<To> to, Function function, Array<From>... from) {
  constexpr unsigned size = group_size<To, From...>();
  unsigned done = 0;  // elements, by all threads together
  if (fits_words(to.at) && (fits_words(from.at) && ...)) {
    const unsigned groups = count / size;
    RINGDP_NO_UNROLL
    for (unsigned g = thread; g < groups; g += kThreads)
      map_group<size>(to.from(g * size), function, load_group<From, size>(from.from(g * size).at)...);
    done = groups * size;
  }
  RINGDP_NO_UNROLL
  for (unsigned i = done + thread; i < count; i += kThreads) store<To>(to.from(i).at, function(element(from, i)...));
}

// What one thread does of `count` elements that are only read: function(x) for each.
template <class Function, class From>
RINGDP_DEVICE void read_tile(unsigned thread, unsigned count, Function function, Array<From> from) {
  constexpr unsigned size = group_size<From>();
  unsigned done = 0;
  if (fits_words(from.at)) {
    const unsigned groups = count / size;
    RINGDP_NO_UNROLL
    for (unsigned g = thread; g < groups; g += kThreads) {
      const auto group = load_group<From, size>(from.from(g * size).at);
      RINGDP_UNROLL
      for (unsigned k = 0; k < size; ++k) function(group.elements[k]);
    }
    done = groups * size;
  }
  RINGDP_NO_UNROLL
  for (unsigned i = done + thread; i < count; i += kThreads) function(element(from, i));
}

// Of `elements`, those in the tile that begins with this one.
RINGDP_DEVICE unsigned size_of_tile(uint64_t elements, uint64_t first) {
  const uint64_t left = elements - first;
  return static_cast<unsigned>(left < kTile ? left : kTile);
}

// body(thread, first element, elements) for every thread and each tile of this block. Blocks may be fewer than tiles.
template <class Body>
RINGDP_DEVICE void each_tile(uint64_t elements, Body body) {
  for (uint64_t first = this_block() * kTile; first < elements; first += all_blocks() * kTile)
    each_thread([&](unsigned thread) { body(thread, first, size_of_tile(elements, first)); });
}

}  // namespace
}  // namespace ringdp::kernels::gpu
