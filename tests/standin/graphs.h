// What streams have captured: nodes, done by each launch in the order that they ask for, and no other.
#pragma once

#include <cstddef>
#include <deque>
#include <memory>
#include <set>
#include <vector>

#include "streams.h"

namespace standin {

// What is told when nothing refers to it any more; in a thread that may ask nothing of CUDA.
class UserObject {
 public:
  UserObject(void* given, void (*destroy)(void*));
  ~UserObject();
  static bool being_destroyed();  // in this thread
  static long live();             // those not told yet

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
  std::deque<Node> nodes;  // which stay where they are: their addresses are handles
  size_t lanes = 0;
  std::vector<std::shared_ptr<UserObject>> held;
};

// What can be launched, again and again.
class Executable {
 public:
  Executable(std::shared_ptr<Graph> graph, int device);
  void launch(Stream& stream);
  bool idle();

 private:
  const std::shared_ptr<Graph> graph_;
  std::vector<std::unique_ptr<Stream>> lanes_;
  Event::Point last_;  // when the launch before is done
};

}  // namespace standin
