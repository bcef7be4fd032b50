#include "collectives/timing_graph.h"

#include <algorithm>
#include <map>

#include "base/check.h"

namespace ringdp::timing {
namespace {

int mod(int64_t value, int n) { return static_cast<int>(((value % n) + n) % n); }

// Whether `other`, the schedule of rank `moved`, is that of `rank` with every peer moved likewise.
bool same_shape(const Schedule& mine, int rank, const Schedule& other, int moved, int ranks) {
  if (mine.moves.size() != other.moves.size()) return false;
  bool rotation = true, exchange = true;
  for (size_t i = 0; i < mine.moves.size(); ++i) {
    const Move &a = mine.moves[i], &b = other.moves[i];
    if (a.kind != b.kind || a.count != b.count || a.after != b.after) return false;
    if (a.kind != Kind::send && a.kind != Kind::receive) continue;
    rotation &= mod(int64_t{a.peer} - rank, ranks) == mod(int64_t{b.peer} - moved, ranks);
    exchange &= (a.peer ^ rank) == (b.peer ^ moved);
  }
  return rotation || exchange;
}

}  // namespace

Graph::Graph(int ranks, int period, const std::function<Schedule(int)>& schedule_of) : ranks_(ranks), period_(period) {
  if (period < 1 || period > ranks || ranks % period != 0)
    fail(ErrorKind::usage, "a period of ", period, " does not divide ", ranks, " ranks");
  for (int r = 0; r < period; ++r) {
    const Schedule schedule = schedule_of(r);
    const int moved = ranks - period + r;
    if (period < ranks && !same_shape(schedule, r, schedule_of(moved), moved, ranks))
      fail(ErrorKind::usage, "rank ", moved, " does not do what rank ", r, " does: no symmetry with a period of ",
           period);
    add(r, schedule);
  }
  link_dependents();
  for (const auto& of_rank : channels_)
    for (const Channel& channel : of_rank) {
      link_channel(channel.sends);
      link_channel(channel.receives);
    }
  match();
}

void Graph::add(int rank, const Schedule& schedule) {
  const size_t total = first_.back() + schedule.moves.size();
  if (total >= kNobody) fail(ErrorKind::usage, "more than 2^32 moves: choose a larger segment or fewer ranks");
  std::map<int, Channel> channels;
  for (const Move& move : schedule.moves) {
    const Node node = static_cast<Node>(kinds_.size());
    const auto channel = [&]() -> Channel& {
      return channels.try_emplace(move.peer, Channel{move.peer, {}, {}}).first->second;
    };
    if (move.kind == Kind::send) channel().sends.push_back(node);
    if (move.kind == Kind::receive) channel().receives.push_back(node);
    kinds_.push_back(move.kind);
    counts_.push_back(move.count);
    owners_.push_back(rank);
    peers_.push_back(move.peer);
    after_.push_back(move.after);
  }
  first_.push_back(static_cast<Node>(total));
  channels_.emplace_back();
  senders_.emplace_back();
  for (auto& [peer, channel] : channels) {
    if (!channel.receives.empty()) senders_.back().push_back(peer);
    channels_.back().push_back(std::move(channel));
  }
}

void Graph::link_dependents() {
  const auto each = [&](auto&& visit) {
    for (Node node = 0; node < nodes(); ++node)
      for (const int32_t a : after_[node])
        if (a >= 0) visit(first_[owners_[node]] + static_cast<Node>(a), node);
  };
  gates_.assign(nodes(), 1);  // the headers
  row_.assign(size_t{nodes()} + 1, 0);
  each([&](Node before, Node node) { ++row_[before + 1], ++gates_[node]; });
  for (Node node = 0; node < nodes(); ++node) row_[node + 1] += row_[node];
  waiting_.resize(row_.back());
  std::vector<uint32_t> place(row_.begin(), row_.end() - 1);
  each([&](Node before, Node node) { waiting_[place[before]++] = node; });
  after_ = {};
  partners_.assign(nodes(), kNobody);
  next_.assign(nodes(), kNobody);
  after_window_.assign(nodes(), kNobody);
}

void Graph::link_channel(const std::vector<Node>& messages) {
  for (size_t i = 1; i < messages.size(); ++i) next_[messages[i - 1]] = messages[i], ++gates_[messages[i]];
  for (size_t i = kInFlight; i < messages.size(); ++i)
    after_window_[messages[i - kInFlight]] = messages[i], ++gates_[messages[i]];
}

const Graph::Channel* Graph::channel_from(int receiver, int peer) const {
  const auto& channels = channels_[receiver];
  const auto it = std::lower_bound(channels.begin(), channels.end(), peer,
                                   [](const Channel& channel, int p) { return channel.peer < p; });
  return it != channels.end() && it->peer == peer && !it->receives.empty() ? &*it : nullptr;
}

// The receives that meet the sends of `rank` on channel `out`: by rotation, or else by exchange (see timing.h).
const std::vector<Node>& Graph::receives_of(const Channel& out, int rank, int* receiver) const {
  *receiver = out.peer % period_;
  const Channel* in = channel_from(*receiver, mod(int64_t{*receiver} - (out.peer - rank), ranks_));
  if (in == nullptr) in = channel_from(*receiver, *receiver ^ (out.peer ^ rank));
  if (in == nullptr || in->receives.size() != out.sends.size())
    fail(ErrorKind::internal, "rank ", rank, " sends ", out.sends.size(), " messages to rank ", out.peer,
         ", which does not receive so many");
  return in->receives;
}

void Graph::match() {
  for (int rank = 0; rank < period_; ++rank)
    for (const Channel& out : channels_[rank]) {
      if (out.sends.empty()) continue;
      int receiver = 0;
      const std::vector<Node>& receives = receives_of(out, rank, &receiver);
      for (size_t i = 0; i < receives.size(); ++i) {
        RINGDP_CHECK(counts_[out.sends[i]] == counts_[receives[i]], "message ", i, " from rank ", rank, " to rank ",
                     out.peer, " has ", counts_[out.sends[i]], " elements, ", counts_[receives[i]], " are received");
        RINGDP_CHECK(partners_[receives[i]] == kNobody, "two messages for one receive of rank ", receiver);
        partners_[out.sends[i]] = receives[i];
        partners_[receives[i]] = out.sends[i];
      }
    }
  for (Node node = 0; node < nodes(); ++node)
    RINGDP_CHECK(!is_message(node) || partners_[node] != kNobody, "a receive of rank ", rank(node),
                 " that nobody sends");
  channels_ = {};
}

}  // namespace ringdp::timing
