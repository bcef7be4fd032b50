#include "collectives/simulate.h"

#include <iterator>

#include "collectives/simulate_graph.h"

namespace ringdp::simulate {
namespace {

class Random {  // splitmix64: small, and the same everywhere
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint32_t below(uint32_t n) { return static_cast<uint32_t>(((bits() >> 32) * n) >> 32); }

 private:
  uint64_t bits() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  uint64_t state_;
};

constexpr uint32_t event_of(Kind kind, Event event) { return static_cast<uint32_t>(kind) * kEvents + event; }

// What a run may keep back, if there are such moves.
constexpr std::pair<Kind, Event> kSlow[] = {
    {Kind::send, kPost},        {Kind::send, kRead},      {Kind::send, kComplete},   {Kind::receive, kPost},
    {Kind::receive, kComplete}, {Kind::reduce, kPost},    {Kind::reduce, kComplete}, {Kind::copy, kPost},
    {Kind::copy, kComplete},    {Kind::finish, kPost},    {Kind::signal, kPost},     {Kind::signal, kRead},
    {Kind::await, kPost},       {Kind::await, kComplete},
};

enum class Favour { any, early, late };

}  // namespace

struct Simulation::State {
  State(std::vector<Schedule> s, Problem p)
      : schedules(std::move(s)), problem(std::move(p)), memory(schedules, problem), graph(memory, problem) {
    for (const auto& [kind, event] : kSlow) {
      Node node = 0;
      while (node < graph.nodes() && memory.kind(node) != kind) ++node;
      if (node < graph.nodes()) slow_kinds.push_back(event_of(kind, event));
    }
    slow_kinds.push_back(~0u);  // nothing
  }

  void run(uint64_t seed) {
    start(seed);
    Node left = graph.nodes();
    while (left > 0) {
      const uint32_t drawn = next();
      happen(drawn / kEvents, static_cast<Event>(drawn % kEvents));
      left -= drawn % kEvents == kComplete;
    }
    memory.check_outputs();
  }

  uint32_t next() {
    if (!now.empty()) return take(now, any(now));
    if (!later.empty()) return take(later, one_of_later());
    if (last.empty()) deadlock();
    return take(last, 0);
  }

  void start(uint64_t seed) {
    random = Random(seed);
    rendezvous = random.below(2);
    narrow = random.below(4) == 0;
    slow_kind = slow_kinds[any(slow_kinds)];
    slow_rank = random.below(static_cast<uint32_t>(memory.ranks()) + 1);
    slow_share = random.below(2) * random.below(5);
    favour = static_cast<Favour>(random.below(3));
    slow_event = random.below(2) ? random.below(graph.nodes() * kEvents) : kNobody;
    memory.reset();
    gates = graph.gates();
    done.assign(graph.nodes(), 0);
    now.clear(), later.clear(), last.clear();
    for (Node node = 0; node < graph.nodes(); ++node) {
      open(node, kPost);
      if (!narrow && memory.kind(node) == Kind::await) open_successor(node);
    }
  }

  void happen(Node node, Event event) {
    if (event == kPost) return post(node);
    if (event == kComplete) return complete(node);
    if (memory.kind(node) == Kind::signal) return show(node);
    memory.read(node);
    open(node, kComplete);
    open(graph.partner(node), kComplete);
  }

  void show(Node signal) {
    for (Node await : graph.awaiting(signal)) open(await, kComplete);
    if (graph.successor(signal) != kNobody) open(graph.successor(signal), kRead);
  }

  void post(Node node) {
    const Node ahead = graph.ahead(node), partner = graph.partner(node);
    if (ahead != kNobody && !done[ahead]) memory.blame(node, "is posted outside the window of ", memory.name(ahead));
    memory.own(node);
    if (memory.kind(node) == Kind::send) {
      open(node, kRead);
      if (!rendezvous) open(node, kRead);
    } else {
      open(node, kComplete);
      if (memory.kind(node) == Kind::signal) open(node, kRead);
      if (rendezvous && partner != kNobody) open(partner, kRead);
    }
    if (!narrow && memory.kind(node) != Kind::await) open_successor(node);
  }

  void complete(Node node) {
    memory.complete(node, graph.partner(node));
    done[node] = 1;
    if (narrow) open_successor(node);
    for (Node waiting : graph.waiting(node)) open(waiting, kPost);
  }

  void open_successor(Node node) {
    if (graph.successor(node) != kNobody) open(graph.successor(node), kPost);
  }

  // One thing less to wait for. The event may happen when nothing is left.
  void open(Node node, Event event) {
    const uint32_t id = node * kEvents + event;
    if (--gates[id] > 0) return;
    (id == slow_event ? last : kept_back(node, event) ? later : now).push_back(id);
  }

  bool kept_back(Node node, Event event) {
    return event_of(memory.kind(node), event) == slow_kind ||
           static_cast<uint32_t>(memory.rank_of(node)) == slow_rank || (slow_share > 0 && random.below(8) < slow_share);
  }

  size_t any(const std::vector<uint32_t>& events) { return random.below(static_cast<uint32_t>(events.size())); }

  // One of four: any, or the one whose move is early (or late) in its rank's list, so that late (or early) ones stay
  // back for very long.
  size_t one_of_later() {
    const auto place = [&](size_t i) { return later[i] / kEvents - memory.first(memory.rank_of(later[i] / kEvents)); };
    size_t best = any(later);
    for (int tries = 0; tries < 3 && favour != Favour::any; ++tries) {
      const size_t other = any(later);
      if (favour == Favour::early ? place(other) < place(best) : place(other) > place(best)) best = other;
    }
    return best;
  }

  static uint32_t take(std::vector<uint32_t>& events, size_t i) {
    std::swap(events[i], events.back());
    const uint32_t id = events.back();
    events.pop_back();
    return id;
  }

  [[noreturn]] void deadlock() const {
    std::string stuck;
    for (int rank = 0; rank < memory.ranks(); ++rank) {
      Node node = memory.first(rank);
      while (node < memory.first(rank + 1) && done[node]) ++node;
      if (node < memory.first(rank + 1)) stuck += "\n  " + memory.name(node);
    }
    fail(ErrorKind::internal, "simulation: deadlock; the first move that is not done, by rank:", stuck);
  }

  const std::vector<Schedule> schedules;
  const Problem problem;
  Memory memory;
  const Graph graph;

  Random random{0};
  bool rendezvous = false, narrow = false;
  Favour favour = Favour::any;
  uint32_t slow_kind = 0, slow_rank = 0, slow_share = 0;  // share: eighths of all events
  std::vector<uint16_t> gates;                            // by node and event: how many things it still waits for
  std::vector<uint8_t> done;
  std::vector<uint32_t> slow_kinds;
  uint32_t slow_event = kNobody;
  std::vector<uint32_t> now, later, last;  // events that may happen; those of a list only when there are none before it
};

Simulation::Simulation(std::vector<Schedule> schedules, Problem problem)
    : state_(std::make_unique<State>(std::move(schedules), std::move(problem))) {}
Simulation::~Simulation() = default;

void Simulation::run(uint64_t seed) { state_->run(seed); }

std::vector<std::string> Simulation::sums(int rank, uint64_t seed) {
  Sums sums;
  state_->memory.trace = &sums;
  state_->run(seed);
  state_->memory.trace = nullptr;
  std::vector<std::string> texts;
  for (const Value& v : state_->memory.output(rank)) texts.push_back(sums.text(v.sum));
  return texts;
}

uint32_t Sums::add(uint32_t from, uint32_t with) {
  const auto [it, is_new] = numbers_.try_emplace({from, with}, kFirst + static_cast<uint32_t>(pairs_.size()));
  if (is_new) pairs_.push_back({from, with});
  return it->second;
}

std::string Sums::text(uint32_t sum) const {
  if (sum < kFirst) return std::to_string(sum - 1);
  const auto [from, with] = pairs_[sum - kFirst];
  return "(" + text(from) + "+" + text(with) + ")";
}

}  // namespace ringdp::simulate
