#include "bindings/gpu.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "bindings/gpu_kernels.h"
#include "bindings/numbers.h"
#include "device/captured_graph.h"
#include "device/gpu.h"
#include "device/libraries.h"

namespace nb = nanobind;

namespace {

using namespace ringdp;

template <class Functions>
nb::dict told(const Found<Functions>& found) {
  nb::dict answer;
  answer["usable"] = found.functions != nullptr;
  answer["path"] = found.path;
  answer["missing"] = found.missing;
  return answer;
}

nb::dict about_driver() {
  const Found<cuda::Driver>& found = cuda_driver();
  nb::dict answer = told(found);
  int version = 0, devices = 0;
  if (found.functions != nullptr) {
    found.functions->driver_version(&version);
    found.functions->device_count(&devices);
  }
  answer["version"] = version;
  answer["devices"] = devices;
  return answer;
}

nb::dict about_nccl() {
  const Found<nccl::Functions>& found = nccl_library();
  nb::dict answer = told(found);
  int version = 0;
  if (found.functions != nullptr) found.functions->get_version(&version);
  answer["version"] = version;
  return answer;
}

bool is_captured(int ordinal, uint64_t stream) {
  Gpu& gpu = Gpu::of(ordinal);
  const Gpu::Current current(gpu);
  int status = 0;
  gpu.check(gpu.driver().is_capturing(stream_at(stream), &status), "cuStreamIsCapturing");
  return status != cuda::kCaptureNone;
}

// A few bytes, in order with what the stream does.
void upload(int ordinal, uint64_t stream, uintptr_t to, const nb::bytes& data) {
  if (is_captured(ordinal, stream)) fail(ErrorKind::internal, "a graph would copy what is no longer there");
  Gpu& gpu = Gpu::of(ordinal);
  const auto pinned = gpu.pinned(data.size());
  std::memcpy(pinned->data(), data.data(), data.size());
  gpu.copy_to_gpu(pointer(to), pinned->data(), data.size(), stream_at(stream));
  pinned->keep_until(gpu.record(stream_at(stream)));
}

uintptr_t constant_in_graph(int ordinal, uint64_t stream, const nb::bytes& data) {
  const auto graph = CapturedGraph::of(Gpu::of(ordinal), stream_at(stream));
  if (!graph) fail(ErrorKind::internal, "no CUDA graph is captured in this stream");
  nb::gil_scoped_release release;
  return reinterpret_cast<uintptr_t>(graph->constant(data.data(), data.size()));
}

}  // namespace

void bind_gpu(nb::module_& m) {
  using namespace nb::literals;
  nb::module_ g = m.def_submodule("gpu", "CUDA and NCCL, looked up when they are first asked for.");
  g.def("driver", &about_driver,
        "Of libcuda: usable, path, missing (why it is not usable), version (12040 is CUDA 12.4), devices.");
  g.def("nccl", &about_nccl, "Of libnccl: usable, path, missing, version (22703 is 2.27.3).");
  g.def("look_for_nccl_in", &look_for_nccl_in, "files"_a, "Files to try, in order; before anything is asked of NCCL.");
  g.def(
      "ordinal_of", [](uintptr_t address) { return Gpu::ordinal_of(reinterpret_cast<const void*>(address)); },
      "address"_a, "The GPU, as this process counts them, on which this address lies; -1: on none.");
  g.def(
      "label", [](int ordinal) { return Gpu::of(ordinal).label(); }, "ordinal"_a,
      "Its number and name. GpuError where there is none.");
  g.def("upload", &upload, "gpu"_a, "stream"_a, "to"_a, "data"_a,
        "Copy bytes to the GPU's memory, in order with what the stream does. Nothing waits.");
  g.def("is_captured", &is_captured, "gpu"_a, "stream"_a,
        "Whether what this stream is given becomes a part of a CUDA graph.");
  g.def("constant_in_graph", &constant_in_graph, "gpu"_a, "stream"_a, "data"_a,
        "The address of a copy on the GPU, which is there as long as the graph that the stream is captured in. Waits.");
  bind_gpu_kernels(g);
}
