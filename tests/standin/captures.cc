#include "captures.h"

#include <algorithm>

namespace standin {

namespace {

std::set<std::shared_ptr<Capture>>& captures() {
  static auto& all = *new std::set<std::shared_ptr<Capture>>;
  return all;
}

}  // namespace

std::recursive_mutex& capture_mutex() {
  static auto& mutex = *new std::recursive_mutex;
  return mutex;
}

// --- begin and end -------------------------------------------------------------------------------------------------------

Capture::Capture(Stream& stream, int how, uint64_t number) : id(number), origin(stream), mode(how) {
  branch_of(stream);
}

Result begin_capture(Stream& stream, int mode) {
  static uint64_t last = 0;
  std::lock_guard lock(capture_mutex());
  if (stream.order() == Order::legacy) return kCaptureUnsupported;
  if (stream.capture) return kIllegalState;
  stream.capture = std::make_shared<Capture>(stream, mode, ++last);
  captures().insert(stream.capture);
  return ringdp::cuda::kSuccess;
}

// Events may still refer to the capture.
std::shared_ptr<Graph> Capture::end() {
  captures().erase(shared_from_this());
  for (auto& [stream, branch] : branches_) stream->capture = nullptr;
  return std::move(graph_);
}

bool Capture::is_joined() const {
  std::set<size_t> reached;
  std::vector<size_t> next(branches_.at(&origin).last.begin(), branches_.at(&origin).last.end());
  while (!next.empty()) {
    const size_t node = next.back();
    next.pop_back();
    if (!reached.insert(node).second) continue;
    next.insert(next.end(), graph_->nodes[node].after.begin(), graph_->nodes[node].after.end());
  }
  return std::all_of(branches_.begin(), branches_.end(), [&](const auto& branch) {
    return std::includes(reached.begin(), reached.end(), branch.second.last.begin(), branch.second.last.end());
  });
}

Graph* captured_graph(const void* handle) {
  for (const auto& capture : captures())
    if (capture->graph() == handle) return capture->graph();
  return nullptr;
}

// --- its streams ---------------------------------------------------------------------------------------------------------

Capture::Branch& Capture::branch_of(Stream& stream) {
  const auto [branch, is_new] = branches_.try_emplace(&stream);
  if (is_new) branch->second.lane = graph_->lanes++;
  return branch->second;
}

void Capture::add(Stream& stream, Stream::Work work) {
  Branch& branch = branch_of(stream);
  graph_->nodes.push_back({std::move(work), branch.lane, branch.last});
  branch.last = {graph_->nodes.size() - 1};
}

Result Capture::join(Stream& stream, const std::set<size_t>& nodes) {
  const std::shared_ptr<Capture> other = stream.capture;
  const bool is_own = other.get() == this;
  if (!graph_) {
    if (other) other->is_invalid = true;
    return kCaptureIsolation;
  }
  if (other && !is_own) {
    is_invalid = other->is_invalid = true;
    return kCaptureMerge;
  }
  if (is_invalid) return ringdp::cuda::kInvalidValue;
  if (stream.order() == Order::legacy) {
    is_invalid = true;
    return kCaptureUnsupported;
  }
  branch_of(stream).last.insert(nodes.begin(), nodes.end());
  stream.capture = shared_from_this();
  return ringdp::cuda::kSuccess;
}

const std::vector<Node*>& Capture::dependencies(Stream& stream) {
  asked_.clear();
  for (const size_t node : branch_of(stream).last) asked_.push_back(&graph_->nodes[node]);
  return asked_;
}

bool Capture::has_blocking(int device) const {
  return std::any_of(branches_.begin(), branches_.end(), [device](const auto& branch) {
    return branch.first->order() == Order::blocking && branch.first->device() == device;
  });
}

// --- what a stream is given ------------------------------------------------------------------------------------------------

bool is_unusable(const Stream& stream) {
  if (stream.order() != Order::legacy) return false;
  return std::any_of(captures().begin(), captures().end(),
                     [&](const auto& capture) { return capture->has_blocking(stream.device()); });
}

Result refusal(Stream& stream) {
  if (stream.capture) return stream.capture->is_invalid ? kCaptureInvalidated : ringdp::cuda::kSuccess;
  if (!is_unusable(stream)) return ringdp::cuda::kSuccess;
  for (const auto& capture : captures())
    if (capture->has_blocking(stream.device())) capture->is_invalid = true;
  return kCaptureImplicit;
}

Result give(Stream& stream, Stream::Work work) {
  std::lock_guard lock(capture_mutex());
  if (const Result refused = refusal(stream); refused != ringdp::cuda::kSuccess) return refused;
  stream.capture ? stream.capture->add(stream, std::move(work)) : stream.push(std::move(work));
  return ringdp::cuda::kSuccess;
}

// --- what disturbs -----------------------------------------------------------------------------------------------------------

int& mode_of_thread() {
  thread_local int mode = global;
  return mode;
}

bool disturbs_a_capture() {
  std::lock_guard lock(capture_mutex());
  const int mode = mode_of_thread();
  bool disturbs = false;
  for (const auto& capture : captures()) {
    const bool is_own = capture->thread == std::this_thread::get_id();
    if (mode == relaxed || capture->mode == relaxed) continue;
    if (!is_own && (mode != global || capture->mode != global)) continue;
    capture->is_invalid = disturbs = true;
  }
  return disturbs;
}

}  // namespace standin
