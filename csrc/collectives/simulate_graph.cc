#include "collectives/simulate_graph.h"

namespace ringdp::simulate {

Edges::Edges(Node nodes, const std::vector<std::pair<Node, Node>>& pairs) : first_(nodes + 1, 0), to_(pairs.size()) {
  for (const auto& [from, to] : pairs) ++first_[from + 1];
  for (Node node = 0; node < nodes; ++node) first_[node + 1] += first_[node];
  std::vector<Node> next(first_);
  for (const auto& [from, to] : pairs) to_[next[from]++] = to;
}

Graph::Graph(const Memory& memory, const Problem& problem)
    : memory_(memory),
      nodes_(memory.first(memory.ranks())),
      partner_(nodes_, kNobody),
      successor_(nodes_, kNobody),
      ahead_(nodes_, kNobody),
      gates_(nodes_ * kEvents, 1) {
  add_dependencies();
  add_messages();
  add_tokens();
  for (int rank = 0; rank < memory.ranks(); ++rank) {
    set_window(rank, Kind::receive, problem.receive_window);
    set_window(rank, Kind::send, problem.send_window);
  }
}

void Graph::add_dependencies() {
  std::vector<std::pair<Node, Node>> pairs;
  for (Node node = 0; node < nodes_; ++node)
    for (int32_t a : memory_.move(node).after)
      if (a != -1) {
        pairs.push_back({named(node, a), node});
        ++gates_[node * kEvents + kPost];
      }
  waiting_ = Edges(nodes_, pairs);
}

void Graph::add_messages() {
  const size_t ranks = static_cast<size_t>(memory_.ranks());
  std::vector<Channel> sends(ranks * ranks), receives(ranks * ranks);  // by sender and receiver
  for (Node node = 0; node < nodes_; ++node) {
    const Move& m = memory_.move(node);
    const size_t rank = static_cast<size_t>(memory_.rank_of(node)), peer = static_cast<size_t>(m.peer);
    if (!is_message(m.kind)) continue;
    if (m.peer < 0 || peer >= ranks || peer == rank) memory_.blame(node, "has no such peer");
    add_to_channel(node, m.kind == Kind::send ? sends[rank * ranks + peer] : receives[peer * ranks + rank]);
    ++gates_[node * kEvents + (m.kind == Kind::send ? kRead : kComplete)];  // the other end
  }
  for (size_t from = 0; from < ranks; ++from)
    for (size_t to = 0; to < ranks; ++to)
      match(sends[from * ranks + to].first, receives[from * ranks + to].first, from, to);
}

void Graph::add_tokens() {
  const int ranks = memory_.ranks();
  std::vector<std::vector<Node>> signals(ranks * Move::kLines);  // by rank and line
  std::vector<Channel> signal_channels(signals.size()), await_channels(signals.size());
  for (Node node = 0; node < nodes_; ++node) {
    const Kind kind = memory_.kind(node);
    if (kind != Kind::signal && kind != Kind::await) continue;
    const uint8_t line = memory_.move(node).line;
    if (line >= Move::kLines) memory_.blame(node, "there is no such line");
    const size_t of = static_cast<size_t>(memory_.rank_of(node) * Move::kLines + line);
    add_to_channel(node, kind == Kind::signal ? signal_channels[of] : await_channels[of]);
    if (kind == Kind::await) continue;
    check_signal(node, signals[of]);
    if (!signals[of].empty()) ++gates_[node * kEvents + kRead];  // seen after the one before
    signals[of].push_back(node);
  }
  std::vector<std::pair<Node, Node>> pairs;
  for (Node node = 0; node < nodes_; ++node) {
    if (memory_.kind(node) != Kind::await) continue;
    const uint64_t number = memory_.move(node).count;
    if (number == 0) memory_.blame(node, "has no number: signals begin with 1");
    for (int other = 0; other < ranks; ++other) {
      if (other == memory_.rank_of(node) || !memory_.share_memory(other, memory_.rank_of(node))) continue;
      const std::vector<Node>& theirs = signals[other * Move::kLines + memory_.move(node).line];
      if (number > theirs.size()) memory_.blame(node, "rank ", other, " never comes to signal ", number);
      pairs.push_back({theirs[number - 1], node});
      ++gates_[node * kEvents + kComplete];
    }
  }
  awaiting_ = Edges(nodes_, pairs);
}

// Whoever sees signal k relies on all that is before it: that is what the signals before it say as well.
void Graph::check_signal(Node node, const std::vector<Node>& before) const {
  if (memory_.move(node).count != before.size() + 1)
    memory_.blame(node, "is signal ", before.size() + 1, " of its line: they rise by one");
  if (before.empty()) return;
  for (int32_t a : memory_.move(node).after)
    if (a != -1 && named(node, a) == before.back()) return;
  memory_.blame(node, "does not name the signal before it: ", memory_.name(before.back()));
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
