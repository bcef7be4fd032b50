// scale, divide, reduce, and whether all is finite: arrays of one dtype, from one end to the other.
#include "kernels/gpu/elements.h"
#include "kernels/gpu/tiles.h"

namespace ringdp::kernels::gpu {
namespace {

template <class Element>
RINGDP_DEVICE void scale(const ScaleParameters& given) {
  using Bits = typename Element::Bits;
  const auto factor = static_cast<typename Element::Factor>(given.factor);
  const Array<Bits> to{given.to}, from{given.from};
  each_tile(given.count, [&](unsigned thread, uint64_t first, unsigned count) {
    const auto scaled = [factor](Bits x) { return Element::scaled(x, factor); };
    map_tile(thread, count, to.from(first), scaled, from.from(first));
  });
}

template <class Element>
RINGDP_DEVICE void divide(const DivideParameters& given) {
  using Bits = typename Element::Bits;
  const auto ranks = static_cast<int>(given.ranks);
  const Array<Bits> to{given.to}, from{given.from};
  each_tile(given.count, [&](unsigned thread, uint64_t first, unsigned count) {
    const auto divided = [ranks](Bits x) { return Element::divided(x, ranks); };
    map_tile(thread, count, to.from(first), divided, from.from(first));
  });
}

template <class Bits, class Operation>
RINGDP_DEVICE void reduce(const ReduceParameters& given) {
  const Array<Bits> to{given.to}, a{given.a}, b{given.b};
  each_tile(given.count, [&](unsigned thread, uint64_t first, unsigned count) {
    const auto reduced = [](Bits x, Bits y) { return Operation::of(x, y); };
    map_tile(thread, count, to.from(first), reduced, a.from(first), b.from(first));
  });
}

template <class Element>
RINGDP_DEVICE void finite(const FiniteParameters& given) {
  using Bits = typename Element::Bits;
  const Array<Bits> from{given.from};
  each_tile(given.count, [&](unsigned thread, uint64_t first, unsigned count) {
    unsigned found = 0;
    const auto look = [&found](Bits x) { found |= is_not_finite<typename Element::Stored>(x); };
    read_tile(thread, count, look, from.from(first));
    if (found) store<uint32_t>(given.flag, 1);  // by any number of threads: all write the same
  });
}

#define RINGDP_SCALE_AND_DIVIDE(name, ...)                           \
  RINGDP_KERNEL(scale_##name, ScaleParameters, (scale<__VA_ARGS__>)) \
  RINGDP_KERNEL(divide_##name, DivideParameters, (divide<__VA_ARGS__>))
RINGDP_INTEGER_ELEMENTS(RINGDP_SCALE_AND_DIVIDE)
RINGDP_FLOAT_ELEMENTS(RINGDP_SCALE_AND_DIVIDE)

#define RINGDP_REDUCE(name, operation, Operation, ...)         \
  RINGDP_KERNEL(reduce_##name##_##operation, ReduceParameters, \
                (reduce<typename __VA_ARGS__::Bits, typename __VA_ARGS__::Operation>))
#define RINGDP_REDUCES(name, ...)            \
  RINGDP_REDUCE(name, sum, Sum, __VA_ARGS__) \
  RINGDP_REDUCE(name, min, Min, __VA_ARGS__) \
  RINGDP_REDUCE(name, max, Max, __VA_ARGS__) \
  RINGDP_REDUCE(name, product, Product, __VA_ARGS__)
RINGDP_REDUCES(bool, Bool)
RINGDP_INTEGER_ELEMENTS(RINGDP_REDUCES)
RINGDP_FLOAT_ELEMENTS(RINGDP_REDUCES)

#define RINGDP_FINITE(name, ...) RINGDP_KERNEL(finite_##name, FiniteParameters, (finite<__VA_ARGS__>))
RINGDP_FLOAT_ELEMENTS(RINGDP_FINITE)

}  // namespace
}  // namespace ringdp::kernels::gpu
