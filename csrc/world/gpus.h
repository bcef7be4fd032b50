// What the ranks of a process set know of each other's GPUs, and so how tensors there are exchanged.
//
// When the first is to be exchanged that NCCL could take, each rank tells all others which GPU it uses, whether it has NCCL,
// and whether its MPI takes memory of GPUs. Where all have a GPU of their own and NCCL, they make a communicator, tell each
// other whether that went well, all-reduce known values by it, and tell each other whether the sums are right. Otherwise,
// where every MPI says that it can, known values go by MPI from GPU to GPU (engine/gpu_probe.cc); then, too, all tell each
// other whether they came out right. Otherwise, and if RINGDP_GPU_TRANSPORT says so, all take the way through host memory,
// which is checked as well. (engine/gpus.cc) In two levels the ranks of each host find their way first.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/options.h"
#include "device/captured_graph.h"
#include "device/communicator.h"
#include "submit/submission.h"
#include "transport/transport.h"

namespace ringdp {

// What a rank tells of itself.
struct GpuCard {
  cuda::Uuid uuid{};
  int32_t nccl = 0;  // its version; 0: none
  GpuTransport wants = GpuTransport::automatic;
  TakesGpuMemory mpi = TakesGpuMemory::no;
  uint8_t kernels = 0;  // it has ours, and its GPU takes them
  nccl::UniqueId id{};  // of the communicator to be; the first rank's counts
};

// What is exchanged to see whether the numbers come out right: numbers that a kernel of ours has scaled are summed, with
// factors before and after; then, by NCCL or MPI, a maximum, for which chunks are only moved. Without kernels the sum alone.
struct SelfCheck {
  static constexpr int kCount = 1000;  // of each
  std::shared_ptr<Gpu::Pinned> values;
  std::shared_ptr<Gpu::Block> on_gpu;
  Gpu::Point done;  // the sums are back in `values`
  bool sum_done = false;
};

struct Gpus {
  enum class Way {
    unknown,
    failed,
    telling,
    making,
    made,
    probing,
    probed,
    checking,
    checked,
    host,
    nccl,
    mpi,
    two_levels
  };

  // Operations that came before the way was known, in order.
  struct Waiting {
    Submission submission;
    uint64_t ticket;
  };

  Gpus() = default;
  Gpus(Gpus&&) = default;
  Gpus& operator=(Gpus&&) = default;
  ~Gpus() {  // the GPU may still be at it
    if (check.on_gpu) check.on_gpu->is_lost = true;
    if (nccl && graphs_are_alive()) nccl->leave();
  }

  bool nccl_is_in_use() const { return nccl != nullptr && way >= Way::checking; }
  bool graphs_are_alive() const {
    return std::any_of(graphs.begin(), graphs.end(), [](const auto& graph) { return graph->is_alive(); });
  }
  bool is_decided() const { return way == Way::failed || way >= Way::host; }

  Way way = Way::unknown;
  Gpu* gpu = nullptr;
  GpuCard card;
  std::string said;                     // to the others: what went wrong here
  std::shared_ptr<class Handle> asked;  // what this rank has told, and what comes back
  Way found = Way::unknown;             // what is being checked
  std::string why_host;
  std::string why_not_nccl, why_not_mpi;  // "": all ranks could
  std::unique_ptr<Communicator> nccl;
  bool kernels = false;                                // all ranks have ours
  std::vector<std::shared_ptr<CapturedGraph>> graphs;  // that have captured exchanges, and may still be replayed
  SelfCheck check;
  Deadline until = Deadline::in(Seconds(0));
  std::deque<Waiting> waiting;
};

}  // namespace ringdp
