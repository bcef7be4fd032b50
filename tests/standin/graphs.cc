#include "graphs.h"

#include <algorithm>
#include <atomic>
#include <thread>
#include <utility>

namespace standin {

// --- user objects -------------------------------------------------------------------------------------------------------

namespace {
thread_local bool destroys = false;
std::atomic<long> not_told{0};
}  // namespace

UserObject::UserObject(void* given, void (*destroy)(void*)) : given_(given), destroy_(destroy) { ++not_told; }

UserObject::~UserObject() {
  std::thread([this] {
    destroys = true;
    destroy_(given_);
  }).join();
  --not_told;
}

long UserObject::live() { return not_told; }

bool UserObject::being_destroyed() { return destroys; }

// --- launches ---------------------------------------------------------------------------------------------------------------

Executable::Executable(std::shared_ptr<Graph> graph, int device) : graph_(std::move(graph)) {
  for (size_t i = 0; i < graph_->lanes; ++i) lanes_.push_back(std::make_unique<Stream>(device, Order::none));
}

bool Executable::idle() {
  return std::all_of(lanes_.begin(), lanes_.end(), [](const auto& lane) { return lane->idle(); });
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
