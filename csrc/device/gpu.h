// One GPU as this process uses it: the context that frameworks use, too, streams of our own, events, and pinned memory.
//
// Nothing here waits for a GPU: what must happen in order is ordered by events on the GPU itself. Every status is looked at;
// what is wrong is an Error that names the call, the GPU, and for memory the bytes wanted and free.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/error.h"
#include "device/cuda.h"

namespace ringdp {

class Gpu {
 public:
  // Made when first asked for, and kept as long as the process. Throws ErrorKind::gpu where there is none of that number.
  static Gpu& of(int ordinal);
  static int ordinal_of(const void* address);  // of memory; -1: it is on no GPU

  // Calls of the driver are about the context that is current in their thread. And while some stream is captured in a CUDA
  // graph, many of them fail, and spoil the graph, unless the thread says that they are none of the capture's business.
  class Current {
   public:
    explicit Current(const Gpu& gpu);
    ~Current();
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;

   private:
    const cuda::Driver& driver_;
    int capture_mode_;
  };

  // A point in a stream. Its last owner gives it back, to be recorded again.
  class Event {
   public:
    bool passed() const;                      // throws what went wrong on the GPU before it, if the driver has noticed
    void hold_up(cuda::Stream stream) const;  // what is given to the stream from now on waits for it

   private:
    friend class Gpu;
    Event(Gpu& gpu, cuda::Event event, bool passed) : gpu_(gpu), event_(event), passed_(passed) {}
    Gpu& gpu_;
    const cuda::Event event_;
    mutable bool passed_;
  };
  using Point = std::shared_ptr<const Event>;
  Point record(cuda::Stream stream) { return record(stream, false); }
  // A point in what a CUDA graph will do: no host waits for it, so it counts as passed.
  Point record_in_graph(cuda::Stream stream) { return record(stream, true); }

  // Memory that is lent: given back by its last owner, and used again when `until` has passed.
  class Lent {
   public:
    void* data() const { return data_; }
    void keep_until(Point point) { until_.push_back(std::move(point)); }
    void keep_for_good() { is_lost_ = true; }

   private:
    friend class Gpu;
    void* data_ = nullptr;
    size_t bytes_ = 0;
    bool is_lost_ = false;
    std::vector<Point> until_;
  };
  using Pinned = Lent;
  std::shared_ptr<Pinned> pinned(size_t bytes);  // host memory that a GPU reads and writes by itself
  std::shared_ptr<Lent> room(size_t bytes);      // on the GPU, for what other ranks write while streams go on

  // Memory on the GPU, for what lives as long as the process set. Given back by its last owner, who must be sure that
  // nothing uses it any more, or says that it is lost.
  struct Block {
    void* data = nullptr;
    bool is_lost = false;
  };
  std::shared_ptr<Block> allocate(size_t bytes);

  // For what is launched in the exchange stream alone, so that it comes after whatever used it before. Kept, and grown.
  void* scratch(size_t bytes);

  void copy_to_host(void* to, const void* from, size_t bytes, cuda::Stream stream);
  void copy_to_gpu(void* to, const void* from, size_t bytes, cuda::Stream stream);
  void copy_on_gpu(void* to, const void* from, size_t bytes, cuda::Stream stream);

  int ordinal() const { return ordinal_; }
  std::string label() const;  // "GPU 0 (its name)"
  const cuda::Uuid& uuid() const { return uuid_; }
  const cuda::Driver& driver() const { return driver_; }
  // Of the highest priority: what other ranks wait for goes before what only this one computes.
  cuda::Stream to_host() const { return to_host_; }
  cuda::Stream from_host() const { return from_host_; }
  cuda::Stream exchange() const { return exchange_; }  // NCCL's and the kernels'
  cuda::Stream new_stream();                           // of that priority; kept as long as the process

  void check(cuda::Result result, const char* call) const;

 private:
  explicit Gpu(int ordinal);
  struct Pool {
    std::mutex mutex;
    std::multimap<size_t, std::unique_ptr<Lent>> spare;  // by bytes
  };

  Point record(cuda::Stream stream, bool in_graph);
  void give_back(cuda::Event event);
  void* new_pinned(size_t bytes);
  template <class Allocate>
  std::shared_ptr<Lent> lend(Pool& pool, size_t bytes, const Allocate& allocate);
  static void give_back(Pool& pool, std::unique_ptr<Lent> block);
  static std::unique_ptr<Lent> spare_block(Pool& pool, size_t bytes);
  [[noreturn]] void out_of_memory(const char* what, size_t bytes) const;

  const int ordinal_;
  const cuda::Driver& driver_;
  cuda::Context context_ = nullptr;
  cuda::Uuid uuid_{};
  std::string name_;
  cuda::Stream to_host_ = nullptr, from_host_ = nullptr, exchange_ = nullptr;

  std::mutex events_mutex_;
  std::vector<cuda::Event> spare_events_;
  Pool pinned_, rooms_;
  std::mutex scratch_mutex_;
  // By bytes, powers of two: the greatest is given out. What still uses a smaller one may not have begun, so they stay;
  // together they are no larger.
  std::map<size_t, std::shared_ptr<Block>> scratch_;
};

// A stream as frameworks name it: 0 is the legacy default stream.
inline cuda::Stream stream_at(uint64_t handle) {
  return reinterpret_cast<cuda::Stream>(static_cast<uintptr_t>(handle == 0 ? cuda::kLegacyStream : handle));
}

}  // namespace ringdp
