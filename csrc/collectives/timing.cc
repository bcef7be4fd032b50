#include "collectives/timing.h"

#include <algorithm>
#include <cmath>
#include <queue>

#include "agree/header.h"
#include "base/check.h"
#include "collectives/timing_graph.h"

namespace ringdp::timing {
namespace {

// What can happen to a move, and when.
enum class Event : uint8_t {
  begin,   // (the first move of a rank) the rank begins
  ask,     // (send) the rank has handed it over: it may ask, or leave if it is small
  leave,   // (send) it takes its turn on the sender's link
  enter,   // (send) its first byte takes its turn on the receiver's link
  arrive,  // (receive) its last byte is there
  worked,  // the rank has done its part: arithmetic, posting a send, taking a receive
  done,
};

struct Happening {
  double time;
  uint64_t order;  // of what happens at the same time, the first caused comes first: runs repeat
  Node node;
  Event event;
  bool operator>(const Happening& o) const { return time != o.time ? time > o.time : order > o.order; }
};

// A seeded exponential with mean 1, one for each message: splitmix64 of its number.
double late(uint64_t seed, Node node) {
  uint64_t z = (seed + 1) * 0x9e3779b97f4a7c15 + node;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return -std::log1p(-static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53);
}

class Execution {
 public:
  Execution(const Graph& graph, double element_bytes, const Cluster& cluster)
      : graph_(graph),
        element_bytes_(element_bytes),
        c_(cluster),
        gates_(graph.gates()),
        out_(2 * graph.executed()),
        in_(2 * graph.executed()),
        workers_(graph.executed()),
        cores_(graph.executed()),
        state_(graph.nodes()) {
    times_.finished.assign(graph.executed(), 0);
    for (Cores& host : cores_) host.free = c_.cores > 0 ? c_.cores : c_.ranks_per_host;
  }

  Times run(const std::vector<double>& ready) {
    for (int rank = 0; rank < graph_.executed(); ++rank) begin(rank, ready);
    while (!queue_.empty()) {
      const Happening h = queue_.top();
      queue_.pop();
      now_ = h.time;
      happen(h.node, h.event);
      for (size_t i = 0; i < opened_.size(); ++i)  // grows meanwhile
        if (--gates_[opened_[i]] == 0) may_start(opened_[i]);
      opened_.clear();
    }
    RINGDP_CHECK(done_ == graph_.nodes(), "virtual time: ", graph_.nodes() - done_, " moves wait for ever");
    return std::move(times_);
  }

 private:
  struct Worker {  // the time of a rank
    std::priority_queue<std::pair<uint64_t, Node>, std::vector<std::pair<uint64_t, Node>>, std::greater<>> work;
    bool busy = false, waits_for_core = false;
  };
  struct Cores {
    int free = 0;
    std::queue<int> waiting;  // ranks
  };
  struct State {
    double asked = -1, posted = -1;  // seconds; of a send, of a receive
    bool arrived = false;
  };

  // A rank begins when it and all who send to it are ready and their headers have come.
  void begin(int rank, const std::vector<double>& ready) {
    const auto at = [&](int r) { return ready.empty() ? 0.0 : ready[r % graph_.executed()]; };
    double start = at(rank);
    for (const int peer : graph_.senders(rank)) {
      const Link& link = host_of(peer) == host_of(rank) ? c_.inside : c_.between;
      const double handling = 2 * c_.per_message;  // the sender's part and the receiver's
      start = std::max(start, at(peer) + handling + link.latency + sizeof(Header) / link.bandwidth);
    }
    times_.finished[rank] = start;
    if (graph_.first(rank) < graph_.first(rank + 1)) add(start, graph_.first(rank), Event::begin);
  }

  // One thing less to wait for; the last one posts a message or queues arithmetic, now.
  void open(Node node) { opened_.push_back(node); }

  void add(double time, Node node, Event event) { queue_.push({time, order_++, node, event}); }

  void happen(Node node, Event event) {
    switch (event) {
      case Event::begin:
        for (const int rank = graph_.rank(node); node < graph_.first(rank + 1); ++node) open(node);
        return;
      case Event::ask:
        return ask(node);
      case Event::leave:
        return leave(node);
      case Event::enter:
        return enter(node);
      case Event::arrive:
        state_[node].arrived = true;
        if (state_[node].posted >= 0) take(node);
        return;
      case Event::worked:
        return worked(node);
      case Event::done:
        return done(node);
    }
  }

  void may_start(Node node) {
    if (!graph_.is_message(node)) return work(node);
    if (graph_.next(node) != kNobody) open(graph_.next(node));
    if (graph_.kind(node) == Kind::send) return c_.per_message > 0 ? work(node) : ask(node);
    state_[node].posted = now_;
    if (state_[node].arrived) take(node);
    if (state_[graph_.partner(node)].asked >= 0) meet(graph_.partner(node));
  }

  // --- messages ---

  void ask(Node send) {
    ++times_.messages;
    if (between(send)) times_.bytes_between += bytes(send);
    if (bytes(send) <= c_.eager) return add(now_, send, Event::leave);
    state_[send].asked = now_;
    if (state_[graph_.partner(send)].posted >= 0) meet(send);
  }

  // A large message and its receive are both posted: the question and the answer travel before it leaves.
  void meet(Node send) {
    const double latency = link(send).latency;
    const State& receive = state_[graph_.partner(send)];
    add(std::max(state_[send].asked + latency, receive.posted) + latency, send, Event::leave);
  }

  void leave(Node send) {
    const double delay = link(send).latency + (c_.jitter > 0 ? c_.jitter * late(c_.seed, send) : 0);
    if (by_rank(send)) {  // nothing leaves: the receiver copies, and the sender's memory is free when it has
      if (bytes(send) <= c_.eager) add(now_, send, Event::done);
      return add(now_ + delay, graph_.partner(send), Event::arrive);
    }
    double& busy_until = out_[port(send, graph_.rank(send))];
    const double start = std::max(now_, busy_until);
    busy_until = start + bytes(send) / link(send).bandwidth;
    add(busy_until, send, Event::done);
    add(start + delay, send, Event::enter);
  }

  void enter(Node send) {
    const Node receive = graph_.partner(send);
    double& busy_until = in_[port(send, graph_.rank(receive))];
    busy_until = std::max(now_, busy_until) + bytes(send) / link(send).bandwidth;
    add(busy_until, receive, Event::arrive);
  }

  void take(Node receive) { seconds_of(receive) > 0 ? work(receive) : done(receive); }

  // --- the ranks' own time ---

  double seconds_of(Node node) const {
    if (!graph_.is_message(node)) return bytes(node) / c_.arithmetic;
    const bool copies = graph_.kind(node) == Kind::receive && by_rank(graph_.partner(node));
    return c_.per_message + (copies ? bytes(node) / c_.inside.bandwidth : 0);
  }

  void work(Node node) {
    // Messages go before arithmetic, as in Run::progress().
    const uint64_t later = graph_.is_message(node) ? 0 : uint64_t{1} << 32;
    workers_[graph_.rank(node)].work.push({later + node, node});
    go_on(graph_.rank(node));
  }

  void go_on(int rank) {
    Worker& worker = workers_[rank];
    if (worker.busy || worker.waits_for_core || worker.work.empty()) return;
    Cores& host = cores_[host_of(rank)];
    if (host.free == 0) {
      worker.waits_for_core = true;
      return host.waiting.push(rank);
    }
    --host.free;
    worker.busy = true;
    const Node node = worker.work.top().second;
    worker.work.pop();
    add(now_ + seconds_of(node), node, Event::worked);
  }

  void worked(Node node) {
    const int rank = graph_.rank(node);
    Cores& host = cores_[host_of(rank)];
    ++host.free;
    workers_[rank].busy = false;
    if (!host.waiting.empty()) {
      const int other = host.waiting.front();
      host.waiting.pop();
      workers_[other].waits_for_core = false;
      go_on(other);
    }
    graph_.kind(node) == Kind::send ? ask(node) : done(node);
    go_on(rank);
  }

  void done(Node node) {
    ++done_;
    double& finished = times_.finished[graph_.rank(node)];
    finished = std::max(finished, now_);
    for (const Node* w = graph_.waiting_begin(node); w != graph_.waiting_end(node); ++w) open(*w);
    if (graph_.next_posted(node) != kNobody) open(graph_.next_posted(node));
    const Node send = graph_.kind(node) == Kind::receive ? graph_.partner(node) : kNobody;
    if (send != kNobody && by_rank(send) && bytes(send) > c_.eager) add(now_, send, Event::done);
  }

  // --- places ---

  int host_of(int rank) const { return rank / c_.ranks_per_host; }
  bool between(Node send) const { return host_of(graph_.rank(send)) != host_of(graph_.peer(send)); }
  bool by_rank(Node send) const { return c_.inside_by_rank && !between(send); }
  const Link& link(Node send) const { return between(send) ? c_.between : c_.inside; }
  double bytes(Node node) const { return static_cast<double>(graph_.count(node)) * element_bytes_; }
  // Each host has a port to the others, each rank one to its own host.
  size_t port(Node send, int rank) const {
    return between(send) ? static_cast<size_t>(host_of(rank)) : static_cast<size_t>(graph_.executed() + rank);
  }

  const Graph& graph_;
  const double element_bytes_;
  const Cluster& c_;
  std::vector<uint16_t> gates_;
  std::vector<double> out_, in_;  // by port: busy until
  std::vector<Worker> workers_;
  std::vector<Cores> cores_;  // by host
  std::vector<State> state_;
  std::priority_queue<Happening, std::vector<Happening>, std::greater<>> queue_;
  std::vector<Node> opened_;
  double now_ = 0;
  uint64_t order_ = 0;
  Node done_ = 0;
  Times times_;
};

void check(int ranks, int period, const Cluster& c, const std::vector<double>& ready) {
  const auto positive = [](double value) { return value > 0; };
  const auto not_negative = [](double value) { return value >= 0 && std::isfinite(value); };
  if (ranks < 1 || c.ranks_per_host < 1 || c.cores < 0)
    fail(ErrorKind::usage, "a cluster of ", ranks, " ranks, ", c.ranks_per_host, " a host, ", c.cores, " cores");
  if (!positive(c.inside.bandwidth) || !positive(c.between.bandwidth) || !positive(c.arithmetic))
    fail(ErrorKind::usage, "bandwidths must be above 0");
  if (!not_negative(c.inside.latency) || !not_negative(c.between.latency) || !not_negative(c.per_message) ||
      !not_negative(c.jitter))
    fail(ErrorKind::usage, "latencies, per_message and jitter must be seconds, 0 or more");
  if (!ready.empty() && ready.size() != static_cast<size_t>(period))
    fail(ErrorKind::usage, ready.size(), " ready times for ", period, " ranks");
  if (period == ranks) return;
  if (period % c.ranks_per_host != 0)
    fail(ErrorKind::usage, "a period of ", period, " ranks is no whole number of hosts of ", c.ranks_per_host);
  if (c.jitter > 0) fail(ErrorKind::usage, "with jitter no rank stands for another: the period must be all ranks");
}

}  // namespace

Times execute(int ranks, int period, const std::function<Schedule(int)>& schedule_of, double element_bytes,
              const Cluster& cluster, const std::vector<double>& ready) {
  check(ranks, period, cluster, ready);
  const Graph graph(ranks, period, schedule_of);
  return Execution(graph, element_bytes, cluster).run(ready);
}

}  // namespace ringdp::timing
