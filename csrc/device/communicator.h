// NCCL among the ranks of a process set, each with a GPU of its own: made, used, watched and ended without a wait.
//
// Non-blocking: a call may be under way when it returns, and NCCL must be asked until it is not. Whoever made one gives it no
// further call before settled() was true.
#pragma once

#include <cstdint>
#include <map>
#include <utility>

#include "base/dtype.h"
#include "device/gpu.h"
#include "device/nccl.h"

namespace ringdp {

class Communicator {
 public:
  static nccl::UniqueId new_id();  // throws where there is no NCCL

  // Begins to make it; all ranks do with the same id, each with its number.
  Communicator(Gpu& gpu, const nccl::UniqueId& id, int ranks, int rank);
  ~Communicator();  // aborts it, unless it has ended
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  // Whether the last call is no longer under way. Throws ErrorKind::gpu for what went wrong in it, or since.
  bool settled();

  // In a stream of the GPU, in place or not. op: average, sum, min, max, product; prescale: of sums of floats, the
  // factor of the inputs.
  void all_reduce(const void* from, void* to, uint64_t count, Dtype dtype, ReduceOp op, double prescale,
                  cuda::Stream stream);
  void reduce_scatter(const void* from, void* to, uint64_t each, Dtype dtype, ReduceOp op, double prescale,
                      cuda::Stream stream);
  void all_gather(const void* from, void* to, uint64_t bytes_of_each, cuda::Stream stream);
  void broadcast(const void* from, void* to, uint64_t bytes, int root, cuda::Stream stream);
  void send(const void* from, uint64_t bytes, int peer, cuda::Stream stream);
  void receive(void* to, uint64_t bytes, int peer, cuda::Stream stream);

  // Calls inside count as one, which begins at the end.
  class Group {
   public:
    explicit Group(Communicator& communicator);
    void end();
    ~Group();
    Group(const Group&) = delete;
    Group& operator=(const Group&) = delete;

   private:
    Communicator& communicator_;
    bool open_ = true;
  };

  static bool knows(Dtype dtype);  // its arithmetic

  // CUDA graphs refer to it, and NCCL would end it only behind them: it stays as long as the process.
  void leave() { communicator_ = nullptr; }

  void abort();  // what is under way ends, with anything in its outputs; other ranks must do the same

  // All ranks have done with it: true once that is settled.
  bool end();

 private:
  nccl::Operation scaled_sum(Dtype dtype, double factor);
  void check(nccl::Result result, const char* call) const;

  const nccl::Functions& nccl_;
  Gpu& gpu_;
  nccl::Communicator communicator_ = nullptr;
  std::map<std::pair<Dtype, double>, nccl::Operation> scaled_sums_;
  bool ending_ = false;
};

}  // namespace ringdp
