#include "device/communicator.h"

#include <cstring>

#include "base/check.h"
#include "device/libraries.h"
#include "kernels/kernels.h"

namespace ringdp {

namespace {

const nccl::Functions& nccl_or_fail() {
  const Found<nccl::Functions>& found = nccl_library();
  if (found.functions == nullptr)
    fail(ErrorKind::gpu, "there is no NCCL: ", found.missing, " (RINGDP_NCCL_LIBRARY names another libnccl)");
  return *found.functions;
}

constexpr nccl::DataType kUnknown = -1;

// Floats of 8 bits it knows since 2.24, and only on some GPUs: kernels of ours reduce them everywhere alike.
// bool: its bytes are 0 and 1, so the greatest is the or of all, and the least the and.
nccl::DataType type_of(Dtype dtype) {
  constexpr nccl::DataType types[kDtypes] = {nccl::kUint8,   nccl::kUint8,   nccl::kInt8,    kUnknown,
                                             nccl::kInt32,   nccl::kInt64,   nccl::kFloat16, nccl::kBfloat16,
                                             nccl::kFloat32, nccl::kFloat64, kUnknown,       kUnknown};
  return types[static_cast<int>(dtype)];
}

nccl::Operation operation_of(Dtype dtype, ReduceOp op) {
  switch (op) {
    case ReduceOp::average:
      return nccl::kAverage;
    case ReduceOp::sum:
      return dtype == Dtype::boolean ? nccl::kMax : nccl::kSum;
    case ReduceOp::product:
      return dtype == Dtype::boolean ? nccl::kMin : nccl::kProduct;
    case ReduceOp::min:
      return nccl::kMin;
    case ReduceOp::max:
      return nccl::kMax;
    default:
      fail(ErrorKind::internal, "NCCL has no ", name_of(op));
  }
}

}  // namespace

nccl::UniqueId Communicator::new_id() {
  nccl::UniqueId id{};
  const nccl::Functions& nccl = nccl_or_fail();
  if (const nccl::Result result = nccl.get_unique_id(&id); result != nccl::kSuccess)
    fail(ErrorKind::gpu, "ncclGetUniqueId failed: ", nccl.text_of_error(result), " (", nccl.last_error(nullptr), ")");
  return id;
}

Communicator::Communicator(Gpu& gpu, const nccl::UniqueId& id, int ranks, int rank) : nccl_(nccl_or_fail()), gpu_(gpu) {
  const Gpu::Current current(gpu_);
  nccl::Config config;
  config.blocking = 0;
  check(nccl_.create(&communicator_, ranks, id, rank, &config), "ncclCommInitRankConfig");
}

Communicator::~Communicator() { abort(); }

void Communicator::check(nccl::Result result, const char* call) const {
  if (result == nccl::kSuccess || result == nccl::kInProgress) return;
  const char* detail = nccl_.last_error(communicator_);
  fail(ErrorKind::gpu, gpu_.label(), ": ", call, " failed: ", nccl_.text_of_error(result),
       detail && *detail ? std::string(" (") + detail + ")" : "");
}

bool Communicator::settled() {
  if (communicator_ == nullptr) fail(ErrorKind::gpu, gpu_.label(), ": NCCL was aborted after a failure");
  nccl::Result state = nccl::kSuccess;
  check(nccl_.async_error(communicator_, &state), "ncclCommGetAsyncError");
  check(state, "an operation of NCCL");
  return state == nccl::kSuccess;
}

// The factors of a job are few. Those made are kept: what is under way may still need them.
nccl::Operation Communicator::scaled_sum(Dtype dtype, double factor) {
  constexpr size_t kMany = 64;
  if (scaled_sums_.size() > kMany) {
    for (const auto& [key, operation] : scaled_sums_) nccl_.destroy_operation(operation, communicator_);
    scaled_sums_.clear();
  }
  RINGDP_CHECK(is_float(dtype), name_of(dtype), " is not scaled by NCCL");
  const auto key = std::pair(dtype, factor);
  if (const auto found = scaled_sums_.find(key); found != scaled_sums_.end()) return found->second;
  const float as_float = static_cast<float>(factor);
  unsigned char bytes[sizeof factor] = {};
  if (dtype == Dtype::float64) std::memcpy(bytes, &factor, sizeof factor);
  if (dtype == Dtype::float32) std::memcpy(bytes, &as_float, sizeof as_float);
  if (size_of(dtype) == 2) kernels::narrow(dtype, bytes, Dtype::float32, &as_float, 1);
  nccl::Operation operation = nccl::kSum;
  check(nccl_.create_scaled_sum(&operation, bytes, type_of(dtype), nccl::kScalarOnHost, communicator_),
        "ncclRedOpCreatePreMulSum");
  scaled_sums_.emplace(key, operation);
  return operation;
}

bool Communicator::knows(Dtype dtype) { return type_of(dtype) != kUnknown; }

void Communicator::all_reduce(const void* from, void* to, uint64_t count, Dtype dtype, ReduceOp op, double prescale,
                              cuda::Stream stream) {
  const Gpu::Current current(gpu_);
  const nccl::Operation operation = prescale == 1 ? operation_of(dtype, op) : scaled_sum(dtype, prescale);
  check(nccl_.all_reduce(from, to, count, type_of(dtype), operation, communicator_, stream), "ncclAllReduce");
}

void Communicator::reduce_scatter(const void* from, void* to, uint64_t each, Dtype dtype, ReduceOp op, double prescale,
                                  cuda::Stream stream) {
  const Gpu::Current current(gpu_);
  const nccl::Operation operation = prescale == 1 ? operation_of(dtype, op) : scaled_sum(dtype, prescale);
  check(nccl_.reduce_scatter(from, to, each, type_of(dtype), operation, communicator_, stream), "ncclReduceScatter");
}

void Communicator::all_gather(const void* from, void* to, uint64_t bytes_of_each, cuda::Stream stream) {
  const Gpu::Current current(gpu_);
  check(nccl_.all_gather(from, to, bytes_of_each, nccl::kUint8, communicator_, stream), "ncclAllGather");
}

void Communicator::broadcast(const void* from, void* to, uint64_t bytes, int root, cuda::Stream stream) {
  const Gpu::Current current(gpu_);
  check(nccl_.broadcast(from, to, bytes, nccl::kUint8, root, communicator_, stream), "ncclBroadcast");
}

void Communicator::send(const void* from, uint64_t bytes, int peer, cuda::Stream stream) {
  const Gpu::Current current(gpu_);
  check(nccl_.send(from, bytes, nccl::kUint8, peer, communicator_, stream), "ncclSend");
}

void Communicator::receive(void* to, uint64_t bytes, int peer, cuda::Stream stream) {
  const Gpu::Current current(gpu_);
  check(nccl_.receive(to, bytes, nccl::kUint8, peer, communicator_, stream), "ncclRecv");
}

Communicator::Group::Group(Communicator& communicator) : communicator_(communicator) {
  communicator_.check(communicator_.nccl_.group_start(), "ncclGroupStart");
}

void Communicator::Group::end() {
  open_ = false;
  const Gpu::Current current(communicator_.gpu_);
  communicator_.check(communicator_.nccl_.group_end(), "ncclGroupEnd");
}

Communicator::Group::~Group() {
  if (open_) communicator_.nccl_.group_end();
}

void Communicator::abort() {
  if (communicator_ == nullptr) return;
  nccl_.abort(communicator_);
  communicator_ = nullptr;
}

bool Communicator::end() {
  if (communicator_ == nullptr) return true;
  const Gpu::Current current(gpu_);
  if (!ending_) check(nccl_.finalize(communicator_), "ncclCommFinalize");
  ending_ = true;
  if (!settled()) return false;
  nccl_.destroy(communicator_);
  communicator_ = nullptr;
  return true;
}

}  // namespace ringdp
