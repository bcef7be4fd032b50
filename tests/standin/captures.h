// Streams that are captured: what such a stream is given is noted as a node of a graph, behind what the stream has come to.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "device/cuda.h"
#include "graphs.h"
#include "streams.h"

namespace standin {

constexpr Result kIllegalState = 401, kCaptureUnsupported = 900, kCaptureInvalidated = 901, kCaptureMerge = 902,
                 kCaptureUnmatched = 903, kCaptureUnjoined = 904, kCaptureIsolation = 905, kCaptureImplicit = 906,
                 kCapturedEvent = 907, kCaptureWrongThread = 908;

enum Mode { global, thread_local_mode, relaxed };  // of a capture, and of a thread

// From the begin to the end. All that is captured is noted under one lock, which who calls holds.
class Capture : public std::enable_shared_from_this<Capture> {
 public:
  Capture(Stream& origin, int mode, uint64_t id);

  const uint64_t id;
  Stream& origin;
  const int mode;
  const std::thread::id thread = std::this_thread::get_id();
  bool is_invalid = false;

  Graph* graph() const { return graph_.get(); }  // none when it has ended
  void add(Stream& stream, Stream::Work work);
  std::set<size_t> last(Stream& stream) const { return branches_.at(&stream).last; }
  // The array is good until the next call.
  const std::vector<Node*>& dependencies(Stream& stream);
  // What the stream is given next comes after these nodes; perhaps it becomes a part of the capture only now.
  [[nodiscard]] Result join(Stream& stream, const std::set<size_t>& nodes);
  bool has_blocking(int device) const;  // a stream that orders itself with the legacy default stream of the device
  bool is_joined() const;               // the origin comes after all that the other streams were given
  std::shared_ptr<Graph> end();         // its streams are as before

 private:
  struct Branch {
    size_t lane = 0;
    std::set<size_t> last;
  };
  Branch& branch_of(Stream& stream);

  std::shared_ptr<Graph> graph_ = std::make_shared<Graph>();
  std::map<Stream*, Branch> branches_;
  std::vector<Node*> asked_;
};

std::recursive_mutex& capture_mutex();

Result begin_capture(Stream& stream, int mode);
Graph* captured_graph(const void* handle);  // that is being captured

// What a stream is given: queued, or noted. Else CUDA's answer where that cannot be, which may spoil captures.
[[nodiscard]] Result give(Stream& stream, Stream::Work work);
[[nodiscard]] Result refusal(Stream& stream);  // the same, of who gives it something by itself
bool is_unusable(const Stream& stream);  // it is the legacy default one, and a stream that blocks with it is captured

// The thread's mode, and whether that forbids it, now, what might disturb a capture: all that it might are spoiled then.
int& mode_of_thread();
bool disturbs_a_capture();

}  // namespace standin
