// The schedules of the ranks that are executed in virtual time, as one graph: who waits for whom, which receive belongs
// to which send, which message follows on the same channel. Compact: 100,000 ranks of a tree fit into memory.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <vector>

#include "collectives/schedule.h"

namespace ringdp::timing {

using Node = uint32_t;  // one move of one rank; those of a rank follow each other in the order of its list
inline constexpr Node kNobody = ~Node{0};
inline constexpr int kInFlight = 16;  // messages posted per channel and direction: Run::kInFlight

class Graph {
 public:
  Graph(int ranks, int period, const std::function<Schedule(int)>& schedule_of);

  Node nodes() const { return static_cast<Node>(kinds_.size()); }
  int executed() const { return static_cast<int>(first_.size()) - 1; }
  Kind kind(Node node) const { return kinds_[node]; }
  bool is_message(Node node) const { return kind(node) == Kind::send || kind(node) == Kind::receive; }
  uint64_t count(Node node) const { return counts_[node]; }
  int rank(Node node) const { return owners_[node]; }
  int peer(Node node) const { return peers_[node]; }                 // as the schedule says: one of all ranks
  Node partner(Node node) const { return partners_[node]; }          // the receive of a send, the send of a receive
  Node next(Node node) const { return next_[node]; }                 // on the same channel, kNobody: the last one
  Node next_posted(Node node) const { return after_window_[node]; }  // may be posted when this one is complete
  const std::vector<int>& senders(int rank) const { return senders_[rank]; }  // the peers that send to it
  Node first(int rank) const { return first_[rank]; }

  // By node: how many things it waits for: the rank's headers, the moves in `after`, the channel.
  const std::vector<uint16_t>& gates() const { return gates_; }
  const Node* waiting_begin(Node node) const { return waiting_.data() + row_[node]; }
  const Node* waiting_end(Node node) const { return waiting_.data() + row_[node + 1]; }

 private:
  struct Channel {
    int peer;
    std::vector<Node> sends, receives;
  };
  void add(int rank, const Schedule& schedule);
  void link_dependents();
  void link_channel(const std::vector<Node>& messages);
  void match();
  const std::vector<Node>& receives_of(const Channel& out, int rank, int* receiver) const;
  const Channel* channel_from(int receiver, int peer) const;

  int ranks_, period_;
  std::vector<Node> first_{0};
  std::vector<Kind> kinds_;
  std::vector<int32_t> owners_, peers_;
  std::vector<uint64_t> counts_;
  std::vector<Node> partners_, next_, after_window_, waiting_;
  std::vector<uint32_t> row_;
  std::vector<uint16_t> gates_;
  std::vector<std::array<int32_t, Move::kAfter>> after_;  // only while the graph is made
  std::vector<std::vector<Channel>> channels_;            // by rank, sorted by peer
  std::vector<std::vector<int>> senders_;
};

}  // namespace ringdp::timing
