#include "device/kernels.h"

#include <algorithm>
#include <memory>

#include "base/check.h"
#include "device/image.h"

namespace ringdp {

namespace {

using namespace kernels::gpu;

// The most that a launch takes. Beyond it, blocks do more than one tile.
constexpr uint64_t kMostBlocks = 0x7fffffff;
constexpr uint64_t kBlocksAtOnce = 8;  // of int8: the rows of a block of threads, as in int8.cu

constexpr const char* kOperations[kElementwiseOps] = {"sum", "sum", "min", "max", "product"};  // averages add

Address address_of(const void* memory) { return reinterpret_cast<uintptr_t>(memory); }

// A GPU would stop at it, and the context with it: no other call would ever work.
Address aligned(const void* memory, size_t bytes) {
  const Address address = address_of(memory);
  if (address % bytes != 0)
    fail(ErrorKind::usage, "memory on a GPU at ", memory, ": elements of ", bytes, " bytes need an address that ",
         bytes, " divides");
  return address;
}
Address aligned(const void* memory, Dtype dtype) { return aligned(memory, size_of(dtype)); }

std::string named(const char* what, Dtype dtype) { return std::string(what) + "_" + name_of(dtype); }

bool is_half(Dtype t) { return t == Dtype::float16 || t == Dtype::bfloat16; }
bool is_wide(Dtype t) { return t == Dtype::float32 || t == Dtype::float64; }

std::string named(const char* what, Dtype from, Dtype to, double factor) {
  const bool is_cast = (is_half(from) && is_wide(to)) || (is_wide(from) && is_half(to));
  RINGDP_CHECK(from == to || is_cast, name_of(from), " is not cast to ", name_of(to));
  RINGDP_CHECK(from != Dtype::boolean || factor == 1, "bool cannot be scaled");
  return named(what, from) + "_" + name_of(to);
}

PackParameters parameters_of(const TableOnGpu& table, Address bucket, double factor, void* flag) {
  return {aligned(table.entries, 8), table.count, table.tiles, bucket, factor, aligned(flag, sizeof(uint32_t))};
}

}  // namespace

bool kernels_are_built() { return ringdp_kernel_image.machine_code != nullptr; }

TensorTable table_of(const std::vector<TensorInBucket>& tensors, Dtype dtype) {
  TensorTable table;
  table.entries.reserve(tensors.size());
  for (const TensorInBucket& tensor : tensors) {
    if (tensor.count == 0) continue;
    table.entries.push_back({aligned(tensor.address, dtype), tensor.first, tensor.count, table.tiles});
    table.tiles += tiles_of(tensor.count);
  }
  return table;
}

// --- the module -----------------------------------------------------------------------------------------------------

Kernels& Kernels::of(Gpu& gpu) {
  static std::mutex mutex;
  // Never destroyed: as those that Gpu::of makes.
  static auto& all = *new std::map<int, std::unique_ptr<Kernels>>;
  std::lock_guard lock(mutex);
  std::unique_ptr<Kernels>& kernels = all[gpu.ordinal()];
  if (!kernels) kernels.reset(new Kernels(gpu));
  return *kernels;
}

Kernels::Kernels(Gpu& gpu) : gpu_(gpu) {
  if (!kernels_are_built())
    fail(ErrorKind::gpu,
         "this ringdp has no kernels for GPUs, as there was no nvcc where it was built; to build it again: ",
         "RINGDP_NVCC names one, RINGDP_WITH_CUDA=1 insists on it");
  const Gpu::Current current(gpu_);
  const cuda::Driver& driver = gpu_.driver();
  kind_ = "machine code";
  if (driver.module_load(&module_, ringdp_kernel_image.machine_code) == cuda::kSuccess) return;
  // A GPU that was not thought of, or a driver that is older than the machine code's form.
  kind_ = "PTX";
  gpu_.check(driver.module_load(&module_, ringdp_kernel_image.portable), "cuModuleLoadData (of ringdp's kernels)");
}

cuda::Function Kernels::function(const std::string& name) {
  std::lock_guard lock(mutex_);
  cuda::Function& function = functions_[name];
  if (function == nullptr)
    gpu_.check(gpu_.driver().module_function(&function, module_, name.c_str()),
               ("cuModuleGetFunction (" + name + ")").c_str());
  return function;
}

template <class Parameters>
void Kernels::launch(const std::string& name, uint64_t blocks, Parameters parameters, cuda::Stream stream) {
  if (blocks == 0) return;
  const std::string full = "ringdp_" + name;
  const Gpu::Current current(gpu_);
  void* given[] = {&parameters};
  const auto grid = static_cast<unsigned>(std::min(blocks, kMostBlocks));
  gpu_.check(gpu_.driver().launch(function(full), grid, 1, 1, kThreads, 1, 1, 0, stream, given, nullptr),
             ("cuLaunchKernel (" + full + ")").c_str());
}

// --- each kernel --------------------------------------------------------------------------------------------------

void Kernels::pack(Dtype tensors, Dtype bucket, const TableOnGpu& table, void* to, double factor, void* flag,
                   cuda::Stream stream) {
  const PackParameters given = parameters_of(table, aligned(to, bucket), factor, flag);
  launch(named("pack", tensors, bucket, factor), table.tiles, given, stream);
}

void Kernels::unpack(Dtype bucket, Dtype tensors, const TableOnGpu& table, const void* from, double factor, void* flag,
                     cuda::Stream stream) {
  const PackParameters given = parameters_of(table, aligned(from, bucket), factor, flag);
  launch(named("unpack", bucket, tensors, factor), table.tiles, given, stream);
}

void Kernels::scale(Dtype dtype, void* to, const void* from, double factor, size_t count, cuda::Stream stream) {
  RINGDP_CHECK(dtype != Dtype::boolean, name_of(dtype), " cannot be scaled");
  const ScaleParameters given{aligned(to, dtype), aligned(from, dtype), count, factor};
  launch(named("scale", dtype), tiles_of(count), given, stream);
}

void Kernels::divide(Dtype dtype, void* to, const void* from, int ranks, size_t count, cuda::Stream stream) {
  RINGDP_CHECK(dtype != Dtype::boolean, name_of(dtype), " has no average");
  RINGDP_CHECK(ranks >= 1, ranks, " ranks");
  const DivideParameters given{aligned(to, dtype), aligned(from, dtype), count, ranks};
  launch(named("divide", dtype), tiles_of(count), given, stream);
}

void Kernels::reduce(Dtype dtype, ReduceOp op, void* to, const void* a, const void* b, size_t count,
                     cuda::Stream stream) {
  RINGDP_CHECK(static_cast<int>(op) < kElementwiseOps, name_of(op), " does not look at each element by itself");
  RINGDP_CHECK(dtype != Dtype::boolean || op != ReduceOp::average, name_of(dtype), " has no ", name_of(op));
  const ReduceParameters given{aligned(to, dtype), aligned(a, dtype), aligned(b, dtype), count};
  launch(named("reduce", dtype) + "_" + kOperations[static_cast<int>(op)], tiles_of(count), given, stream);
}

void Kernels::finite(Dtype dtype, const void* from, size_t count, void* flag, cuda::Stream stream) {
  RINGDP_CHECK(is_float(dtype), name_of(dtype), " is always finite");
  const FiniteParameters given{aligned(from, dtype), count, aligned(flag, sizeof(uint32_t))};
  launch(named("finite", dtype), tiles_of(count), given, stream);
}

void Kernels::quantise(void* wire, const void* from, size_t count, size_t block, cuda::Stream stream) {
  RINGDP_CHECK(block >= 1, "blocks of no elements");
  const QuantiseParameters given{address_of(wire), aligned(from, Dtype::float32), count, block};
  launch("quantise", blocks_of(blocks_of(count, block), kBlocksAtOnce), given, stream);
}

void Kernels::load_for_replays() {
  for (const char* name : {"begin_replay", "compare_replays", "note_exchange", "stop"})
    function(std::string("ringdp_") + name);
}

void Kernels::begin_replay(void* progress, void* count, void* told, uint64_t graph, cuda::Stream stream) {
  launch("begin_replay", 1, BeginReplayParameters{address_of(progress), address_of(count), address_of(told), graph},
         stream);
}

void Kernels::compare_replays(void* progress, const void* heard, int ranks, int rank, cuda::Stream stream) {
  const CompareReplaysParameters given{address_of(progress), address_of(heard), static_cast<uint64_t>(ranks),
                                       static_cast<uint64_t>(rank)};
  launch("compare_replays", 1, given, stream);
}

void Kernels::note_exchange(void* progress, uint64_t exchange, cuda::Stream stream) {
  launch("note_exchange", 1, NoteExchangeParameters{address_of(progress), exchange}, stream);
}

void Kernels::stop(cuda::Stream stream) { launch("stop", 1, StopParameters{}, stream); }

void Kernels::dequantise(void* to, const void* wire, size_t count, size_t block, cuda::Stream stream) {
  RINGDP_CHECK(block >= 1, "blocks of no elements");
  const QuantiseParameters given{aligned(to, Dtype::float32), address_of(wire), count, block};
  launch("dequantise", blocks_of(blocks_of(count, block), kBlocksAtOnce), given, stream);
}

}  // namespace ringdp
