// The memory of all simulated ranks, cell by cell: what it holds and which move owns it at the moment.
// Moves of all ranks are numbered one after the other; such a number is a *node* here and in simulate.cc.
#pragma once

#include "base/error.h"
#include "collectives/describe.h"
#include "collectives/simulate.h"

namespace ringdp::simulate {

using Node = uint32_t;
inline constexpr Node kNobody = ~Node{0};

class Memory {
 public:
  // Checks bounds and targets, and that each rank can reach what it names.
  Memory(const std::vector<Schedule>& schedules, const Problem& problem);
  void reset();

  void own(Node node);                    // the move is posted: it owns its regions; what it reads must be there
  void read(Node node);                   // a send puts its region on the wire
  void complete(Node node, Node sender);  // does the move, gives its regions back; sender: whose message is received
  void check_outputs() const;
  const Move& move(Node node) const { return schedules_[rank_of_[node]].moves[node - first_[rank_of_[node]]]; }
  Kind kind(Node node) const { return acts_[node].kind; }
  int rank_of(Node node) const { return rank_of_[node]; }
  int ranks() const { return static_cast<int>(schedules_.size()); }
  Node first(int rank) const { return first_[rank]; }  // node of rank's first move; first(ranks): how many there are
  bool share_memory(int rank, int other) const;        // are they of one host?
  std::vector<Value> output(int rank) const;

  template <class... Parts>
  [[noreturn]] void blame(Node node, Parts&&... parts) const {
    fail(ErrorKind::internal, "simulation: ", name(node), ": ", std::forward<Parts>(parts)...);
  }
  std::string name(Node node) const;  // "rank 2, move 17 (receive …)"

  Sums* trace = nullptr;  // if set, the order of addition is recorded there

 private:
  struct Cell {
    Value value;
    Node writer = kNobody, reader = kNobody;
    uint32_t readers = 0;
  };
  struct Act {  // a move with its regions as positions in cells_
    Kind kind;
    bool prescale;
    bool of_others;  // reads or writes other ranks' memory
    uint32_t count, to, from, with, wire;
  };
  uint32_t position(Node node, const Region& region, const char* role);  // after all checks
  void check_sharing(Node node, const Region& region, const char* role) const;
  void check_owners(Node node) const;
  void fill(uint32_t position, const std::vector<Value>& values);
  void own_to_read(Node node, uint32_t position, bool also_written);
  void own_to_write(Node node, uint32_t position);
  Value reduced(Node node, const Value& a, const Value& b) const;
  Value finished(Node node, Value v) const;
  Value copied(Node node, Value v) const;

  const std::vector<Schedule>& schedules_;
  const Problem& problem_;
  const uint64_t everyone_;
  std::vector<Node> first_;
  std::vector<int> rank_of_;
  std::vector<std::array<uint32_t, 4>> base_;  // by rank and place
  std::vector<Act> acts_;
  std::vector<size_t> left_;  // by rank: moves that are not done
  std::vector<Cell> cells_, initial_;
  std::vector<Value> wire_;
};

}  // namespace ringdp::simulate
