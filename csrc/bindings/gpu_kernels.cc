#include "bindings/gpu_kernels.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/numbers.h"
#include "device/kernels.h"

namespace nb = nanobind;

namespace {

using namespace ringdp;

using Addresses = std::vector<std::tuple<uintptr_t, size_t, size_t>>;  // address, count, first
using Table = std::tuple<uintptr_t, size_t, uint64_t>;                 // address, entries, tiles

Kernels& on(int gpu) { return Kernels::of(Gpu::of(gpu)); }

nb::tuple table_for(int dtype, const Addresses& tensors) {
  std::vector<TensorInBucket> all;
  for (const auto& [address, count, first] : tensors) all.push_back({pointer(address), count, first});
  const TensorTable table = table_of(all, dtype_of(dtype));
  const size_t bytes = table.entries.size() * sizeof table.entries[0];
  return nb::make_tuple(nb::bytes(table.entries.data(), bytes), table.entries.size(), table.tiles);
}

TableOnGpu on_gpu(const Table& table) { return {pointer(std::get<0>(table)), std::get<1>(table), std::get<2>(table)}; }

void pack(int gpu, uint64_t stream, int tensors, int bucket, const Table& table, uintptr_t to, double factor,
          uintptr_t flag) {
  on(gpu).pack(dtype_of(tensors), dtype_of(bucket), on_gpu(table), pointer(to), factor, pointer(flag),
               stream_at(stream));
}
void unpack(int gpu, uint64_t stream, int bucket, int tensors, const Table& table, uintptr_t from, double factor,
            uintptr_t flag) {
  on(gpu).unpack(dtype_of(bucket), dtype_of(tensors), on_gpu(table), pointer(from), factor, pointer(flag),
                 stream_at(stream));
}

void scale(int gpu, uint64_t stream, int dtype, uintptr_t to, uintptr_t from, double factor, size_t count) {
  on(gpu).scale(dtype_of(dtype), pointer(to), pointer(from), factor, count, stream_at(stream));
}
void divide(int gpu, uint64_t stream, int dtype, uintptr_t to, uintptr_t from, int ranks, size_t count) {
  on(gpu).divide(dtype_of(dtype), pointer(to), pointer(from), ranks, count, stream_at(stream));
}
void reduce(int gpu, uint64_t stream, int dtype, int op, uintptr_t to, uintptr_t a, uintptr_t b, size_t count) {
  on(gpu).reduce(dtype_of(dtype), operation_of(op, kReduceOps), pointer(to), pointer(a), pointer(b), count,
                 stream_at(stream));
}
void look_for_not_finite(int gpu, uint64_t stream, int dtype, uintptr_t from, size_t count, uintptr_t flag) {
  on(gpu).finite(dtype_of(dtype), pointer(from), count, pointer(flag), stream_at(stream));
}
void quantise(int gpu, uint64_t stream, uintptr_t wire, uintptr_t from, size_t count, size_t block) {
  on(gpu).quantise(pointer(wire), pointer(from), count, block, stream_at(stream));
}
void dequantise(int gpu, uint64_t stream, uintptr_t to, uintptr_t wire, size_t count, size_t block) {
  on(gpu).dequantise(pointer(to), pointer(wire), count, block, stream_at(stream));
}

}  // namespace

void bind_gpu_kernels(nb::module_& gpu) {
  using namespace nb::literals;
  nb::module_ k = gpu.def_submodule(
      "kernels",
      "Kernels launched in a stream, on raw addresses of the GPU's memory: nothing waits, little is checked.");
  k.def("built", &kernels_are_built, "Whether this build had an nvcc.");
  k.def(
      "kind", [](int ordinal) { return on(ordinal).kind(); }, "gpu"_a,
      "What this GPU runs: 'machine code', or 'PTX' that its driver has compiled.");
  k.def("table", &table_for, "dtype"_a, "tensors"_a,
        "Of (address, count, first element in the bucket) each: (bytes to copy to the GPU, entries, tiles).");
  k.def("pack", &pack, "gpu"_a, "stream"_a, "tensors"_a, "bucket"_a, "table"_a, "to"_a, "factor"_a, "flag"_a = 0,
        "Tensors into their bucket; dtypes of both. `table`: (address on the GPU, entries, tiles).");
  k.def("unpack", &unpack, "gpu"_a, "stream"_a, "bucket"_a, "tensors"_a, "table"_a, "from_"_a, "factor"_a, "flag"_a = 0,
        "The bucket to its tensors.");
  k.def("scale", &scale, "gpu"_a, "stream"_a, "dtype"_a, "to"_a, "from_"_a, "factor"_a, "count"_a,
        "to[i] = from[i] * factor. `to` may be `from`.");
  k.def("divide", &divide, "gpu"_a, "stream"_a, "dtype"_a, "to"_a, "from_"_a, "ranks"_a, "count"_a,
        "to[i] = from[i] / ranks. `to` may be `from`.");
  k.def("reduce", &reduce, "gpu"_a, "stream"_a, "dtype"_a, "op"_a, "to"_a, "a"_a, "b"_a, "count"_a,
        "to[i] = a[i] op b[i]. `to` may be `a` or `b`.");
  k.def("finite", &look_for_not_finite, "gpu"_a, "stream"_a, "dtype"_a, "from_"_a, "count"_a, "flag"_a,
        "Sets the uint32 at `flag` to 1 if an element is infinite or NaN.");
  k.def("quantise", &quantise, "gpu"_a, "stream"_a, "wire"_a, "from_"_a, "count"_a, "block"_a,
        "float32 to blocks of signed bytes, each with its scale.");
  k.def("dequantise", &dequantise, "gpu"_a, "stream"_a, "to"_a, "wire"_a, "count"_a, "block"_a, "And back.");
}
