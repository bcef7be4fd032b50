#include "bindings/kernels.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <string>
#include <vector>

#include "bindings/numbers.h"
#include "kernels/copy.h"
#include "kernels/crc32c.h"
#include "kernels/hash.h"
#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace nb = nanobind;

namespace {

using namespace ringdp;

void refuse_bool(Dtype dtype, const char* what) {
  if (dtype == Dtype::boolean) throw nb::value_error((std::string("bool has no ") + what).c_str());
}

void reduce(int dtype, int op, uintptr_t to, uintptr_t a, uintptr_t b, size_t count) {
  const Dtype t = dtype_of(dtype);
  const ReduceOp o = operation_of(op, kElementwiseOps);
  if (o == ReduceOp::average) refuse_bool(t, "Average");
  kernels::reduce(t, o, pointer(to), pointer(a), pointer(b), count);
}

void scale(int dtype, uintptr_t to, uintptr_t from, double factor, size_t count) {
  const Dtype t = dtype_of(dtype);
  refuse_bool(t, "scale");
  kernels::scale(t, pointer(to), pointer(from), factor, count);
}

void divide(int dtype, uintptr_t to, uintptr_t from, int ranks, size_t count) {
  const Dtype t = dtype_of(dtype);
  refuse_bool(t, "Average");
  if (ranks < 1) throw nb::value_error(("cannot divide by " + std::to_string(ranks) + " ranks").c_str());
  kernels::divide(t, pointer(to), pointer(from), ranks, count);
}

void narrow(int narrow, uintptr_t to, int wide, uintptr_t from, size_t count) {
  kernels::narrow(dtype_of(narrow), pointer(to), dtype_of(wide), pointer(from), count);
}

void widen(int wide, uintptr_t to, int narrow, uintptr_t from, size_t count) {
  kernels::widen(dtype_of(wide), pointer(to), dtype_of(narrow), pointer(from), count);
}

size_t find_not_finite(int dtype, uintptr_t from, size_t count) {
  return kernels::find_not_finite(dtype_of(dtype), pointer(from), count);
}

uint64_t hash(uintptr_t from, size_t bytes, uint64_t seed) { return kernels::hash(pointer(from), bytes, seed); }

void copy(uintptr_t to, uintptr_t from, size_t bytes) { kernels::copy(pointer(to), pointer(from), bytes); }
void stream(uintptr_t to, uintptr_t from, size_t bytes) { kernels::stream(pointer(to), pointer(from), bytes); }

void force_variant(const std::string& name) {
  if (!kernels::force_variant(name.c_str()))
    throw nb::value_error(("this CPU or build has no variant '" + name + "' of the kernels").c_str());
}

std::vector<std::string> variants() {
  std::vector<std::string> names;
  for (const auto& v : kernels::kVariants)
    if (v.runs_here()) names.push_back(v.name);
  return names;
}

}  // namespace

void bind_kernels(nb::module_& m) {
  using namespace nb::literals;
  nb::module_ k = m.def_submodule("kernels", "The arithmetic on elements, on raw addresses: nothing is checked there.");
  k.def(
      "reduce", &reduce, "dtype"_a, "op"_a, "to"_a, "a"_a, "b"_a, "count"_a,
      "to[i] = a[i] op b[i] for i < count. `to` may be `a` or `b`, otherwise no overlap; addresses need no alignment.\n"
      "dtype and op are wire numbers. ValueError for an unknown one, or an Average of bool.");
  k.def("scale", &scale, "dtype"_a, "to"_a, "from_"_a, "factor"_a, "count"_a,
        "to[i] = from[i] * factor for i < count. `to` may be `from`. ValueError for bool.");
  k.def("divide", &divide, "dtype"_a, "to"_a, "from_"_a, "ranks"_a, "count"_a,
        "to[i] = from[i] / ranks for i < count: the end of an average. ValueError for bool or ranks < 1.");
  k.def(
      "narrow", &narrow, "narrow"_a, "to"_a, "wide"_a, "from_"_a, "count"_a,
      "to[i] = from[i] for i < count: dtype `wide` (float32, float64) rounded to `narrow` (float16, bfloat16), float64 "
      "by way of float32. No overlap. RingdpError for other dtypes.");
  k.def("widen", &widen, "wide"_a, "to"_a, "narrow"_a, "from_"_a, "count"_a,
        "to[i] = from[i] for i < count, from `narrow` to `wide`, exactly. No overlap. RingdpError for other dtypes.");
  k.def("find_not_finite", &find_not_finite, "dtype"_a, "from_"_a, "count"_a, nb::call_guard<nb::gil_scoped_release>(),
        "The first i < count whose element is infinite or NaN; `count` if there is none. Addresses need no alignment.");
  k.def("hash", &hash, "from_"_a, "bytes"_a, "seed"_a = 0, nb::call_guard<nb::gil_scoped_release>(),
        "64 bits of so many bytes of memory: XXH64.");
  k.def("copy", &copy, "to"_a, "from_"_a, "bytes"_a, nb::call_guard<nb::gil_scoped_release>(),
        "Copy memory, addresses given; no overlap.");
  k.def("stream", &stream, "to"_a, "from_"_a, "bytes"_a, nb::call_guard<nb::gil_scoped_release>(),
        "Copies bytes past the caches, for memory that is not read soon. No overlap; addresses need no alignment.");
  k.def(
      "crc32c", [](uintptr_t at, size_t bytes, uint32_t before) { return kernels::crc32c(pointer(at), bytes, before); },
      "at"_a, "bytes"_a, "before"_a = 0, nb::call_guard<nb::gil_scoped_release>(),
      "The CRC32C of bytes at an address, going on from that of what comes before them.");
  k.def("variant", &kernels::variant, "The variant that runs: 'avx512', 'avx2', 'neon' or 'portable'.");
  k.def("variants", &variants, "All variants that this build contains and this CPU can run, the best first.");
  k.def("force_variant", &force_variant, "name"_a,
        "Makes a variant run, for tests; '' returns to the automatic choice. ValueError if it cannot run here.");
}
