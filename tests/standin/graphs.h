// Streams that are captured, and the graphs that come of it: what a captured stream is given is noted, and done by each launch.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "streams.h"

namespace standin {

// What is told when nothing refers to it any more; in a thread that may ask nothing of CUDA.
class UserObject {
 public:
  UserObject(void* given, void (*destroy)(void*)) : given_(given), destroy_(destroy) {}
  ~UserObject();
  static bool being_destroyed();  // in this thread

 private:
  void* given_;
  void (*destroy_)(void*);
};

struct Node {
  Stream::Work work;
  size_t lane;             // of the stream that was given it
  std::set<size_t> after;  // nodes of any lane
};

struct Graph {
  std::vector<Node> nodes;
  size_t lanes = 0;
  std::vector<std::shared_ptr<UserObject>> held;
};

struct SharedGraph {
  std::shared_ptr<Graph> graph;
};
struct SharedObject {
  std::shared_ptr<UserObject> object;
};

// From the begin to the end. All that is captured is noted under one lock.
class Capture {
 public:
  Capture(Stream& origin, int mode, uint64_t id);
  const uint64_t id;
  Stream& origin;
  const int mode;
  const std::thread::id thread = std::this_thread::get_id();
  std::shared_ptr<Graph> graph = std::make_shared<Graph>();
  bool is_invalid = false, is_over = false;

  struct Branch {
    size_t lane = 0;
    std::set<size_t> last;  // what comes next in it comes after these
  };
  void add(Stream& stream, Stream::Work work);
  std::set<size_t> last(Stream& stream) { return branches_.at(&stream).last; }
  void come_after(Stream& stream, const std::set<size_t>& nodes);  // which may be none of it yet
  bool is_joined() const;  // all that other streams were given, the origin comes after
  void release();          // its streams are as before

 private:
  std::map<Stream*, Branch> branches_;
};

std::recursive_mutex& capture_mutex();

// The thread's mode, and whether that forbids it, now, what might disturb a capture: then all that it might, are spoiled.
int& mode_of_thread();
bool disturbs_a_capture();
std::shared_ptr<Capture> begin_capture(Stream& stream, int mode);
std::shared_ptr<Graph> end_capture(Capture& capture);
Graph* captured_graph(const void* handle);  // that is being captured

// What can be launched, again and again.
class Executable {
 public:
  Executable(std::shared_ptr<Graph> graph, int device);
  void launch(Stream& stream);

 private:
  const std::shared_ptr<Graph> graph_;
  std::vector<std::unique_ptr<Stream>> lanes_;
  Event::Point last_;  // when the launch before is done
};

}  // namespace standin
