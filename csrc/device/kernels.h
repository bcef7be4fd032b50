// Launches of the kernels in csrc/kernels/gpu, in the caller's stream: nothing here waits. Addresses are of memory that
// the GPU reaches, and each fits the size of an element. What kernels.h says of dtypes and operations holds here, too.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "device/gpu.h"
#include "kernels/gpu/parameters.h"

namespace ringdp {

bool kernels_are_built();  // false: this build had no nvcc, and the first launch fails

// A tensor, and its place in a bucket.
struct TensorInBucket {
  const void* address;
  size_t count;
  size_t first;  // its first element's number in the bucket
};

// What pack and unpack are told of many tensors. The caller copies `entries` to the GPU's memory.
struct TensorTable {
  std::vector<kernels::gpu::Entry> entries;
  uint64_t tiles = 0;
};
TensorTable table_of(const std::vector<TensorInBucket>& tensors, Dtype dtype);

// The same, once it is there.
struct TableOnGpu {
  const void* entries;
  size_t count;
  uint64_t tiles;
};

class Kernels {
 public:
  static Kernels& of(Gpu& gpu);  // loaded when first asked for, and kept as long as the process

  // All tensors to their places in the bucket, or back: cast from one dtype to the other, and times `factor` in the
  // wider of the two. One dtype and factor 1: a copy, bit for bit. The dtypes are the same, or a 16-bit float and a
  // wide one; bool has factor 1. `flag`, a uint32_t or nullptr, becomes 1 if a float that was read is infinite or NaN.
  void pack(Dtype tensors, Dtype bucket, const TableOnGpu& table, void* to, double factor, void* flag,
            cuda::Stream stream);
  void unpack(Dtype bucket, Dtype tensors, const TableOnGpu& table, const void* from, double factor, void* flag,
              cuda::Stream stream);

  void scale(Dtype dtype, void* to, const void* from, double factor, size_t count, cuda::Stream stream);
  void divide(Dtype dtype, void* to, const void* from, int ranks, size_t count, cuda::Stream stream);
  void reduce(Dtype dtype, ReduceOp op, void* to, const void* a, const void* b, size_t count, cuda::Stream stream);
  void finite(Dtype dtype, const void* from, size_t count, void* flag, cuda::Stream stream);

  // float32 to the wire's form and back: for each block its codes, one byte each, and its scale. On the wire the last
  // block is as long as the others.
  void quantise(void* wire, const void* from, size_t count, size_t block, cuda::Stream stream);
  void dequantise(void* to, const void* wire, size_t count, size_t block, cuda::Stream stream);

  // Loads what may have to be launched while a kernel waits for other ranks: CUDA might load it only behind that.
  void load_for_replays();
  // Of replays of a CUDA graph. `progress`: kernels::gpu::Progress in host memory that the GPU writes.
  void begin_replay(void* progress, void* count, void* told, uint64_t graph, cuda::Stream stream);
  void compare_replays(void* progress, const void* heard, int ranks, int rank, cuda::Stream stream);
  void note_exchange(void* progress, uint64_t exchange, cuda::Stream stream);
  void stop(cuda::Stream stream);  // all of the GPU's context, for good

  const std::string& kind() const { return kind_; }  // "machine code", or "PTX" that the driver has compiled

 private:
  explicit Kernels(Gpu& gpu);
  cuda::Function function(const std::string& name);
  template <class Parameters>
  void launch(const std::string& name, uint64_t blocks, Parameters parameters, cuda::Stream stream);

  Gpu& gpu_;
  cuda::Module module_ = nullptr;
  std::string kind_;
  std::mutex mutex_;
  std::map<std::string, cuda::Function> functions_;
};

}  // namespace ringdp
