// A CUDA graph with exchanges in it, from its capture until it and all that was made of it are gone.
//
// Its replays pass no code of ours on the host. So each begins with what this rank and all others tell each other, on their
// GPUs, and leaves in host memory how far it has come: kernels/gpu/replay.cu does it, and engine/in_graphs.cc looks at it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "device/gpu.h"
#include "kernels/gpu/parameters.h"

namespace ringdp {

class CapturedGraph {
 public:
  // That which the stream is a part of; none where it is not captured. From any thread.
  static std::shared_ptr<CapturedGraph> of(Gpu& gpu, cuda::Stream stream);

  // A stream of ours, for exchanges alone: it becomes a part of the capture when it waits for one of its events.
  cuda::Stream stream() const { return stream_; }

  // It, or an executable made of it, is still there, and so is what it was given below.
  bool is_alive() const { return life_->load(); }

  // Memory on the GPU for what is launched in stream(), one behind the other.
  void* scratch(size_t bytes);
  // A copy on the GPU of what no replay changes. Waits until it is there.
  void* constant(const void* bytes, size_t count);

  // What the replays of one process set tell.
  class Replays {
   public:
    Replays(Gpu& gpu, CapturedGraph& graph, int ranks, int rank);
    uint64_t number = 0;              // of the graph, the same on all ranks; 0: it has no exchange yet
    std::vector<std::string> labels;  // of its exchanges, in order

    void begin(uint64_t number);                  // launched before what the ranks tell each other
    void* told() const { return mine_; }          // kToldBytes of this rank ...
    void* heard() const { return all_; }          // ... and of all
    void compare();                               // launched when that is here
    void came_to_next(const std::string& label);  // launched behind an exchange

    bool is_under_way() const;
    // Whether nothing has moved for so long, though a replay is under way. To be asked some times a second.
    bool is_stuck(Seconds most);
    kernels::gpu::Progress progress() const;
    void refuse();  // from now on a replay stops the GPU

   private:
    Gpu& gpu_;
    CapturedGraph& graph_;
    const int ranks_, rank_;
    const std::shared_ptr<Gpu::Lent> host_;  // kernels::gpu::Progress
    std::byte *count_, *mine_, *all_;        // on the GPU
    kernels::gpu::Progress seen_{};
    Clock::time_point moved_ = Clock::now();
  };
  // Its number in the process set; 0 before its first exchange there.
  uint64_t number_in(int process_set) const;
  // Made when first asked for.
  Replays& replays(int process_set, int ranks, int rank);

  CapturedGraph(const CapturedGraph&) = delete;
  CapturedGraph& operator=(const CapturedGraph&) = delete;

 private:
  CapturedGraph(Gpu& gpu, cuda::Stream stream) : gpu_(gpu), stream_(stream) {}
  void stay_with(cuda::Graph graph);
  void* keep(size_t bytes);

  Gpu& gpu_;
  const cuda::Stream stream_;
  // What the graph itself holds, and ends. Not more than that: in its last moment nothing may be asked of the driver.
  const std::shared_ptr<std::atomic<bool>> life_ = std::make_shared<std::atomic<bool>>(true);
  std::vector<std::shared_ptr<Gpu::Block>> blocks_;
  void* scratch_ = nullptr;
  size_t scratch_bytes_ = 0;
  std::map<int, std::unique_ptr<Replays>> replays_;  // by process set
};

}  // namespace ringdp
