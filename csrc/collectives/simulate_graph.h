// Which move of which rank waits for which: the part of a simulation that does not change from run to run.
#pragma once

#include "collectives/simulate_memory.h"

namespace ringdp::simulate {

enum Event : uint32_t { kPost, kRead, kComplete, kEvents };

// Pairs of nodes, kept by the first one.
class Edges {
 public:
  struct Nodes {
    const Node *first, *last;
    const Node* begin() const { return first; }
    const Node* end() const { return last; }
  };
  Edges() = default;
  Edges(Node nodes, const std::vector<std::pair<Node, Node>>& pairs);
  Nodes of(Node node) const { return {to_.data() + first_[node], to_.data() + first_[node + 1]}; }

 private:
  std::vector<Node> first_, to_;
};

class Graph {
 public:
  Graph(const Memory& memory, const Problem& problem);  // throws if messages do not match, or tokens

  Node nodes() const { return nodes_; }
  Node partner(Node node) const { return partner_[node]; }      // a message's other end
  Node successor(Node node) const { return successor_[node]; }  // the next on the same channel (below)
  Node ahead(Node node) const { return ahead_[node]; }          // must be done when this one is posted: the window
  Edges::Nodes waiting(Node node) const { return waiting_.of(node); }    // the moves that name this one in `after`
  Edges::Nodes awaiting(Node node) const { return awaiting_.of(node); }  // the awaits that a signal is for
  // By node and event: how many things must happen before it. `start` is one of them for each post.
  const std::vector<uint16_t>& gates() const { return gates_; }

 private:
  struct Channel {  // one rank's sends to another, receives from another, signals or awaits of a line: by successor()
    Node first = kNobody, last = kNobody;
  };
  void add_dependencies();
  void add_messages();
  void add_tokens();
  Node named(Node node, int32_t after) const;  // the node that `node` names in `after`
  void add_to_channel(Node node, Channel& channel);
  void check_signal(Node node, const std::vector<Node>& before) const;
  void match(Node send, Node receive, size_t from, size_t to);
  void set_window(int rank, Kind kind, uint64_t window);

  const Memory& memory_;
  const Node nodes_;
  std::vector<Node> partner_, successor_, ahead_;
  Edges waiting_, awaiting_;
  std::vector<uint16_t> gates_;
};

}  // namespace ringdp::simulate
