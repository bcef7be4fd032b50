// Many tensors into one bucket, and back, in one launch: copied, cast, scaled, and looked at for what is not finite.
//
//   tiles     0      1      2      3      4      a block takes a tile, finds its tensor in the table, and goes on
//   tensors  |--a--------|  |--b--|  |--c-----|  to the tile that is as many further as there are blocks
#include "kernels/gpu/elements.h"
#include "kernels/gpu/tiles.h"

namespace ringdp::kernels::gpu {
namespace {

// The last one that begins at this tile or before. Every thread looks by itself: they read the same words.
RINGDP_DEVICE Entry entry_of(uint64_t tile, Address table, uint64_t entries) {
  uint64_t least = 0, above = entries;
  while (above - least > 1) {
    const uint64_t middle = least + (above - least) / 2;
    const Address first_tile = table + middle * sizeof(Entry) + offsetof(Entry, first_tile);
    (load<uint64_t>(first_tile) <= tile ? least : above) = middle;
  }
  const Address at = table + least * sizeof(Entry);
  return {load<uint64_t>(at), load<uint64_t>(at + 8), load<uint64_t>(at + 16), load<uint64_t>(at + 24)};
}

// Notes what is not finite, for dtypes that can hold it.
template <class Element>
struct Noting {
  unsigned& found;
  RINGDP_DEVICE void operator()(typename Element::Bits x) const {
    if constexpr (Element::is_float) found |= is_not_finite<typename Element::Stored>(x);
  }
};

// One thread's part of a tile, the dtype kept: a copy, or times a factor.
template <class Element>
struct Same {
  using From = typename Element::Bits;
  using To = typename Element::Bits;
  using Read = Element;
  RINGDP_DEVICE static void map(unsigned thread, unsigned count, Array<To> to, Array<From> from, double factor,
                                Noting<Element> note) {
    const auto copied = [&](From x) { return note(x), x; };
    if (factor == 1) return map_tile(thread, count, to, copied, from);
    if constexpr (!std::is_same_v<Element, Bool>) {
      const auto f = static_cast<typename Element::Factor>(factor);
      const auto scaled = [&](From x) { return note(x), Element::scaled(x, f); };
      map_tile(thread, count, to, scaled, from);
    }
  }
};

// The same from one dtype to another.
template <class Source, class Target>
struct Casting {
  using From = typename Source::Bits;
  using To = typename Target::Bits;
  using Read = Source;
  RINGDP_DEVICE static void map(unsigned thread, unsigned count, Array<To> to, Array<From> from, double factor,
                                Noting<Source> note) {
    const auto f = static_cast<typename Cast<Source, Target>::Value>(factor);
    const auto cast = [&](From x) { return note(x), Cast<Source, Target>::of(x, f); };
    map_tile(thread, count, to, cast, from);
  }
};

template <class Work, bool into_bucket>
RINGDP_DEVICE void do_tile(unsigned thread, const PackParameters& given, const Entry& entry, uint64_t first) {
  const uint64_t in_bucket = entry.first + first;
  const Array<typename Work::From> from{into_bucket ? entry.tensor : given.bucket};
  const Array<typename Work::To> to{into_bucket ? given.bucket : entry.tensor};
  unsigned found = 0;
  Work::map(thread, size_of_tile(entry.count, first), to.from(into_bucket ? in_bucket : first),
            from.from(into_bucket ? first : in_bucket), given.factor, Noting<typename Work::Read>{found});
  if (found && given.flag) store<uint32_t>(given.flag, 1);  // by any number of threads: all write the same
}

template <class Work, bool into_bucket>
RINGDP_DEVICE void each_tensor(const PackParameters& given) {
  for (uint64_t tile = this_block(); tile < given.tiles; tile += all_blocks()) {
    const Entry entry = entry_of(tile, given.table, given.entries);
    const uint64_t first = (tile - entry.first_tile) * kTile;
    each_thread([&](unsigned thread) { do_tile<Work, into_bucket>(thread, given, entry, first); });
  }
}

#define RINGDP_PACK_AND_UNPACK(from, to, ...)                                         \
  RINGDP_KERNEL(pack_##from##_##to, PackParameters, (each_tensor<__VA_ARGS__, true>)) \
  RINGDP_KERNEL(unpack_##from##_##to, PackParameters, (each_tensor<__VA_ARGS__, false>))

#define RINGDP_SAME(name, ...) RINGDP_PACK_AND_UNPACK(name, name, Same<__VA_ARGS__>)
RINGDP_SAME(bool, Bool)
RINGDP_INTEGER_ELEMENTS(RINGDP_SAME)
RINGDP_FLOAT_ELEMENTS(RINGDP_SAME)

#define RINGDP_CASTS(narrow, Format, wide, WideFormat)                            \
  RINGDP_PACK_AND_UNPACK(wide, narrow, Casting<Wide<WideFormat>, Narrow<Format>>) \
  RINGDP_PACK_AND_UNPACK(narrow, wide, Casting<Narrow<Format>, Wide<WideFormat>>)
RINGDP_CASTS(float16, Float16, float32, Float32)
RINGDP_CASTS(float16, Float16, float64, Float64)
RINGDP_CASTS(bfloat16, Bfloat16, float32, Float32)
RINGDP_CASTS(bfloat16, Bfloat16, float64, Float64)

}  // namespace
}  // namespace ringdp::kernels::gpu
