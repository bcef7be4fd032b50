// Which move of which rank waits for which: the part of a simulation that does not change from run to run.
#pragma once

#include "collectives/simulate_memory.h"

namespace ringdp::simulate {

enum Event : uint32_t { kPost, kRead, kComplete, kEvents };

class Graph {
 public:
  Graph(const Memory& memory, const Problem& problem);  // throws if messages do not match

  Node nodes() const { return nodes_; }
  Node partner(Node node) const { return partner_[node]; }      // a message's other end
  Node successor(Node node) const { return successor_[node]; }  // the next message on the same channel
  Node ahead(Node node) const { return ahead_[node]; }          // must be done when this one is posted: the window
  // The moves that name this one in `after`: [begin, end).
  const Node* waiting_begin(Node node) const { return waiting_.data() + first_waiting_[node]; }
  const Node* waiting_end(Node node) const { return waiting_begin(node + 1); }
  // By node and event: how many things must happen before it. `start` is one of them for each post.
  const std::vector<uint16_t>& gates() const { return gates_; }

 private:
  struct Channel {  // the messages of one rank to or from one other, linked by successor()
    Node first = kNobody, last = kNobody;
  };
  void add_dependencies();
  Node named(Node node, int32_t after) const;  // the node that `node` names in `after`
  void add_to_channel(Node node, Channel& channel);
  void match(Node send, Node receive, size_t from, size_t to);
  void set_window(int rank, Kind kind, uint64_t window);

  const Memory& memory_;
  const Node nodes_;
  std::vector<Node> partner_, successor_, ahead_;
  std::vector<Node> first_waiting_, waiting_;
  std::vector<uint16_t> gates_;
};

}  // namespace ringdp::simulate
