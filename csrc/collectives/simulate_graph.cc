#include "collectives/simulate_graph.h"

namespace ringdp::simulate {

Graph::Graph(const Memory& memory, const Problem& problem)
    : memory_(memory),
      nodes_(memory.first(memory.ranks())),
      partner_(nodes_, kNobody),
      successor_(nodes_, kNobody),
      ahead_(nodes_, kNobody),
      first_waiting_(nodes_ + 1, 0),
      gates_(nodes_ * kEvents, 1) {
  add_dependencies();
  const size_t ranks = static_cast<size_t>(memory.ranks());
  std::vector<Channel> sends(ranks * ranks), receives(ranks * ranks);  // by sender and receiver
  for (Node node = 0; node < nodes_; ++node) {
    const Move& m = memory.move(node);
    const size_t rank = static_cast<size_t>(memory.rank_of(node)), peer = static_cast<size_t>(m.peer);
    if (m.kind != Kind::send && m.kind != Kind::receive) continue;
    if (m.peer < 0 || peer >= ranks || peer == rank) memory.blame(node, "has no such peer");
    add_to_channel(node, m.kind == Kind::send ? sends[rank * ranks + peer] : receives[peer * ranks + rank]);
    ++gates_[node * kEvents + (m.kind == Kind::send ? kRead : kComplete)];  // the other end
  }
  for (size_t from = 0; from < ranks; ++from)
    for (size_t to = 0; to < ranks; ++to)
      match(sends[from * ranks + to].first, receives[from * ranks + to].first, from, to);
  for (int rank = 0; rank < memory.ranks(); ++rank) {
    set_window(rank, Kind::receive, problem.receive_window);
    set_window(rank, Kind::send, problem.send_window);
  }
}

void Graph::add_dependencies() {
  const auto for_each = [&](const auto& use) {
    for (Node node = 0; node < nodes_; ++node)
      for (int32_t a : memory_.move(node).after)
        if (a != -1) use(named(node, a), node);
  };
  for_each([&](Node before, Node node) {
    ++first_waiting_[before + 1];
    ++gates_[node * kEvents + kPost];
  });
  for (Node node = 0; node < nodes_; ++node) first_waiting_[node + 1] += first_waiting_[node];
  waiting_.resize(first_waiting_[nodes_]);
  std::vector<Node> next(first_waiting_);
  for_each([&](Node before, Node node) { waiting_[next[before]++] = node; });
}

Node Graph::named(Node node, int32_t after) const {
  const Node first = memory_.first(memory_.rank_of(node));
  if (after < 0 || static_cast<Node>(after) >= node - first)
    memory_.blame(node, "waits for move ", after, ", which is not before it");
  return first + static_cast<Node>(after);
}

void Graph::add_to_channel(Node node, Channel& channel) {
  if (channel.last == kNobody) {
    channel.first = node;
  } else {
    successor_[channel.last] = node;
    ++gates_[node * kEvents + kPost];
  }
  channel.last = node;
}

// Pairs the messages of a channel in order, from its first ones on.
void Graph::match(Node send, Node receive, size_t from, size_t to) {
  while (send != kNobody || receive != kNobody) {
    if (receive == kNobody) memory_.blame(send, "rank ", to, " has no receive for it");
    if (send == kNobody) memory_.blame(receive, "rank ", from, " has no send for it");
    if (memory_.move(send).count != memory_.move(receive).count)
      memory_.blame(receive, "its message is of another length: ", memory_.name(send));
    partner_[send] = receive;
    partner_[receive] = send;
    send = successor_[send];
    receive = successor_[receive];
  }
}

void Graph::set_window(int rank, Kind kind, uint64_t window) {
  if (window == 0) return;
  std::vector<Node> messages;
  for (Node node = memory_.first(rank); node < memory_.first(rank + 1); ++node) {
    if (memory_.move(node).kind != kind) continue;
    if (messages.size() >= window) ahead_[node] = messages[messages.size() - window];
    messages.push_back(node);
  }
}

}  // namespace ringdp::simulate
