#include "graphs.h"

#include <algorithm>

#include "misuse.h"

namespace standin {

// --- user objects -------------------------------------------------------------------------------------------------------

namespace {
thread_local bool destroys = false;
}

UserObject::~UserObject() {
  std::thread([this] {
    destroys = true;
    destroy_(given_);
  }).join();
}

bool UserObject::being_destroyed() { return destroys; }

// --- captures -------------------------------------------------------------------------------------------------------------

namespace {

constexpr int kGlobal = 0, kRelaxed = 2;

std::set<std::shared_ptr<Capture>>& captures() {
  static auto& all = *new std::set<std::shared_ptr<Capture>>;
  return all;
}

}  // namespace

std::recursive_mutex& capture_mutex() {
  static auto& mutex = *new std::recursive_mutex;
  return mutex;
}

int& mode_of_thread() {
  thread_local int mode = kGlobal;
  return mode;
}

bool disturbs_a_capture() {
  std::lock_guard lock(capture_mutex());
  const int mode = mode_of_thread();
  bool disturbs = false;
  for (const auto& capture : captures()) {
    const bool is_own = capture->thread == std::this_thread::get_id();
    if (mode == kRelaxed || capture->mode == kRelaxed) continue;
    if (!is_own && (mode != kGlobal || capture->mode != kGlobal)) continue;
    capture->is_invalid = disturbs = true;
  }
  return disturbs;
}

Capture::Capture(Stream& stream, int how, uint64_t number) : id(number), origin(stream), mode(how) {
  come_after(stream, {});
}

std::shared_ptr<Capture> begin_capture(Stream& stream, int mode) {
  static uint64_t last = 0;
  std::lock_guard lock(capture_mutex());
  auto capture = std::make_shared<Capture>(stream, mode, ++last);
  stream.capture = capture;
  captures().insert(capture);
  return capture;
}

// Events may still refer to the capture.
std::shared_ptr<Graph> end_capture(Capture& capture) {
  std::lock_guard lock(capture_mutex());
  capture.is_over = true;
  capture.release();
  std::shared_ptr<Graph> graph = std::move(capture.graph);
  const auto is_it = [&](const auto& one) { return one.get() == &capture; };
  captures().erase(std::find_if(captures().begin(), captures().end(), is_it));
  return graph;
}

Graph* captured_graph(const void* handle) {
  for (const auto& capture : captures())
    if (capture->graph.get() == handle) return capture->graph.get();
  return nullptr;
}

void Capture::come_after(Stream& stream, const std::set<size_t>& nodes) {
  const auto [branch, is_new] = branches_.try_emplace(&stream);
  if (is_new) branch->second.lane = graph->lanes++;
  branch->second.last.insert(nodes.begin(), nodes.end());
}

void Capture::add(Stream& stream, Stream::Work work) {
  Branch& branch = branches_.at(&stream);
  graph->nodes.push_back({std::move(work), branch.lane, branch.last});
  branch.last = {graph->nodes.size() - 1};
}

bool Capture::is_joined() const {
  std::set<size_t> reached;
  std::vector<size_t> next(branches_.at(&origin).last.begin(), branches_.at(&origin).last.end());
  while (!next.empty()) {
    const size_t node = next.back();
    next.pop_back();
    if (!reached.insert(node).second) continue;
    next.insert(next.end(), graph->nodes[node].after.begin(), graph->nodes[node].after.end());
  }
  return std::all_of(branches_.begin(), branches_.end(), [&](const auto& branch) {
    return std::includes(reached.begin(), reached.end(), branch.second.last.begin(), branch.second.last.end());
  });
}

void Capture::release() {
  for (auto& [stream, branch] : branches_) stream->capture = nullptr;
}

// --- launches ---------------------------------------------------------------------------------------------------------------

Executable::Executable(std::shared_ptr<Graph> graph, int device) : graph_(std::move(graph)) {
  for (size_t i = 0; i < graph_->lanes; ++i) lanes_.push_back(std::make_unique<Stream>(device, Order::none));
}

// Each lane in order, and beside one another but for what the nodes say.
void Executable::launch(Stream& stream) {
  std::vector<Event::Point> passed;
  const Event::Point begin = new_point();
  stream.push_mark([begin] { pass(begin); });
  for (const auto& lane : lanes_) {
    lane->push_mark([begin] { wait_for(begin); });
    if (last_) lane->push_mark([last = last_] { wait_for(last); });
  }
  for (const Node& node : graph_->nodes) {
    Stream& lane = *lanes_[node.lane];
    for (const size_t before : node.after)
      if (graph_->nodes[before].lane != node.lane) lane.push_mark([point = passed[before]] { wait_for(point); });
    lane.push([graph = graph_, &node] { node.work(); });
    passed.push_back(new_point());
    lane.push_mark([point = passed.back()] { pass(point); });
  }
  std::vector<Event::Point> ends;
  for (const auto& lane : lanes_) {
    ends.push_back(new_point());
    lane->push_mark([point = ends.back()] { pass(point); });
  }
  for (const Event::Point& end : ends) stream.push_mark([end] { wait_for(end); });
  last_ = new_point();
  stream.push_mark([last = last_] { pass(last); });
}

}  // namespace standin
