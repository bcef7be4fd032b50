// A communicator of the stand-in for libnccl on one of its ranks.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>

#include "device/nccl.h"
#include "misuse.h"
#include "nccl_shared.h"

namespace standin {

namespace cuda = ringdp::cuda;
using ringdp::nccl::Communicator;
using ringdp::nccl::DataType;
using ringdp::nccl::kInProgress;
using ringdp::nccl::kSuccess;
using ringdp::nccl::Operation;
using ringdp::nccl::Result;

constexpr Result kUnhandledCudaError = 1, kSystemError = 2, kInternalError = 3, kInvalidArgument = 4, kInvalidUsage = 5;

// What the stand-in for libcuda has for this one (standin.h).
struct Cuda {
  std::byte* (*reach)(cuda::Address, size_t, const char*, int);
  cuda::Stream (*stream)(cuda::Stream, int);
  uint64_t (*capture)(cuda::Stream);
  cuda::Result (*enqueue)(cuda::Stream, uint64_t capture, std::function<void()>*);
  int (*stopped)();
  cuda::Uuid (*uuid)();
  int (*ordinal)();
};
const Cuda& of_cuda();

// Faults on purpose, RINGDP_STANDIN_NCCL_FAIL=call:after:error; "async" is a call that every operation makes on the GPU.
Result fault(const std::string& call);

struct Factor {
  DataType type;
  uint64_t bytes;
};

struct Comm {
  std::string name;
  int ranks = 0, rank = 0, ordinal = 0;
  cuda::Uuid uuid{};
  std::atomic<Result> state{kSuccess};
  std::atomic<bool> aborted{false}, finalized{false};
  std::atomic<int> given{0}, running{0};  // what streams have been given and not done; what they are at
  std::atomic<int> captured{0};           // what graphs may replay
  SharedFile* file = nullptr;
  std::map<Operation, Factor> factors;
  std::thread connecting;

  ~Comm();
};
using Shared = std::shared_ptr<Comm>;

Shared find(Communicator c);  // misuse: there is none, or it has been destroyed or aborted
Communicator add(const Shared& c);
void forget(Communicator c);

// All ranks come, each with a GPU of its own; to run in a thread.
void connect(Comm& c);

// False if the communicator was aborted before.
template <class Done>
bool wait_for(const Comm& c, const Done& done) {
  while (!done()) {
    if (c.aborted || of_cuda().stopped()) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
  return true;
}
bool barrier(Comm& c);

}  // namespace standin
