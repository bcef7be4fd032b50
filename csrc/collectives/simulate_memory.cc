#include "collectives/simulate_memory.h"

namespace ringdp::simulate {
namespace {

bool reads_from(Kind k) { return k == Kind::send || is_arithmetic(k); }
bool reads_with(Kind k) { return k == Kind::reduce; }
bool writes(Kind k) { return k == Kind::receive || is_arithmetic(k); }

}  // namespace

Memory::Memory(const std::vector<Schedule>& schedules, const Problem& problem)
    : schedules_(schedules),
      problem_(problem),
      everyone_(schedules.size() == 64 ? ~uint64_t{0} : (uint64_t{1} << schedules.size()) - 1) {
  const int ranks = static_cast<int>(schedules.size());
  if (ranks < 1 || ranks > 64) fail(ErrorKind::usage, "the simulator takes 1 to 64 ranks, not ", ranks);
  uint64_t cells = 0;
  const auto reserve = [&](uint64_t n) {
    if (cells + n > UINT32_MAX) fail(ErrorKind::usage, "too many elements to simulate");
    return static_cast<uint32_t>(std::exchange(cells, cells + n));
  };
  for (int r = 0; r < ranks; ++r) {
    const uint32_t output = reserve(problem.expected[r].size());
    const uint32_t input = problem.in_place ? output : reserve(problem.inputs[r].size());
    const uint32_t scratch = reserve(schedules[r].scratch);
    base_.push_back({input, output, scratch, reserve(schedules[r].area)});
  }
  initial_.resize(cells);
  for (int r = 0; r < ranks; ++r) fill(base_[r][0], problem.inputs[r]);

  size_t moves = 0;
  for (const Schedule& s : schedules) moves += s.moves.size();
  acts_.reserve(moves), rank_of_.reserve(moves);
  uint32_t wire = 0;
  for (int r = 0; r < ranks; ++r) {
    first_.push_back(static_cast<Node>(rank_of_.size()));
    rank_of_.resize(rank_of_.size() + schedules[r].moves.size(), r);
    for (const Move& m : schedules[r].moves) {
      const Node node = static_cast<Node>(acts_.size());
      const bool to = writes(m.kind), from = reads_from(m.kind), with = reads_with(m.kind);
      const uint32_t count = to || from ? static_cast<uint32_t>(m.count) : 0;  // of a token it is a number
      acts_.push_back({m.kind, m.prescale, false, count, 0, 0, 0, wire});
      if (from) acts_.back().from = position(node, m.from, "from");
      if (with) acts_.back().with = position(node, m.with, "with");
      if (to) acts_.back().to = position(node, m.to, "to");
      if (to && m.to.place == Place::input) blame(node, "writes to the input");
      if (m.kind == Kind::send) wire += count;
    }
  }
  first_.push_back(static_cast<Node>(rank_of_.size()));
  wire_.resize(wire);
}

void Memory::fill(uint32_t position, const std::vector<Value>& values) {
  for (size_t i = 0; i < values.size(); ++i) initial_[position + i].value = values[i];
}

uint32_t Memory::position(Node node, const Region& region, const char* role) {
  const int rank = rank_of_[node];
  if (move(node).count == 0) blame(node, "has no elements");
  if (region.owner != Region::kOwn || region.place == Place::area) check_sharing(node, region, role);
  const int owner = region.owner == Region::kOwn ? rank : region.owner;
  acts_[node].of_others |= owner != rank;
  const uint64_t sizes[] = {problem_.inputs[owner].size(), problem_.expected[owner].size(), schedules_[owner].scratch,
                            schedules_[owner].area};
  const uint64_t size = sizes[static_cast<int>(region.place)];
  if (region.offset > size || move(node).count > size - region.offset)
    blame(node, "`", role, "` is beyond the end of ", name_of(region.place), ", which has ", size, " elements");
  return base_[owner][static_cast<int>(region.place)] + static_cast<uint32_t>(region.offset);
}

// May this rank reach memory that is named by its owner?
void Memory::check_sharing(Node node, const Region& region, const char* role) const {
  const auto wrong = [&](const auto&... why) { blame(node, "`", role, "` ", why...); };
  if (region.owner == Region::kOwn) wrong("does not say whose area it is");
  if (region.owner < 0 || region.owner >= ranks()) wrong("lies with rank ", region.owner, ", which there is not");
  if (region.place != Place::area && region.place != Place::output) wrong("is no memory that ranks share");
  if (region.place == Place::output && !problem_.outputs_are_shared)
    wrong("lies in an output, and these are not shared");
  if (!share_memory(rank_of_[node], region.owner)) wrong("lies on another host");
}

bool Memory::share_memory(int rank, int other) const {
  return problem_.host_of.empty() || problem_.host_of[rank] == problem_.host_of[other];
}

void Memory::reset() {
  cells_ = initial_;
  left_.clear();
  for (const Schedule& s : schedules_) left_.push_back(s.moves.size());
}

// Who has done its last move may do anything with its memory: nobody else may read or write it then.
void Memory::check_owners(Node node) const {
  const Move& m = move(node);
  const auto check = [&](const char* verb, const Region& region) {
    if (region.owner == Region::kOwn || region.owner == rank_of_[node] || left_[region.owner] > 0) return;
    blame(node, verb, " rank ", region.owner, "'s ", name_of(region.place), " after rank ", region.owner, " has ended");
  };
  if (reads_from(m.kind)) check("reads", m.from);
  if (reads_with(m.kind)) check("reads", m.with);
  if (writes(m.kind)) check("writes", m.to);
}

void Memory::own(Node node) {
  const Act& a = acts_[node];
  if (a.of_others) check_owners(node);
  if (reads_from(a.kind)) own_to_read(node, a.from, writes(a.kind) && a.from == a.to);
  if (reads_with(a.kind)) own_to_read(node, a.with, a.with == a.to);
  if (writes(a.kind)) own_to_write(node, a.to);
  if (a.kind == Kind::receive)
    for (uint32_t i = 0; i < a.count; ++i) cells_[a.to + i].value = Value{};  // garbage until it is complete
}

void Memory::own_to_read(Node node, uint32_t position, bool also_written) {
  for (uint32_t i = 0; i < acts_[node].count; ++i) {
    Cell& c = cells_[position + i];
    if (c.writer != kNobody) blame(node, "reads element ", i, " while it is written by ", name(c.writer));
    if (c.value.ranks == 0) blame(node, "reads element ", i, ", which was never written");
    if (also_written) continue;  // own_to_write() takes it
    c.reader = node, ++c.readers;
  }
}

void Memory::own_to_write(Node node, uint32_t position) {
  for (uint32_t i = 0; i < acts_[node].count; ++i) {
    Cell& c = cells_[position + i];
    if (c.writer != kNobody) blame(node, "writes element ", i, " while it is written by ", name(c.writer));
    if (c.readers != 0) blame(node, "writes element ", i, " while it is read by ", name(c.reader));
    c.writer = node;
  }
}

void Memory::read(Node node) {
  const Act& a = acts_[node];
  for (uint32_t i = 0; i < a.count; ++i) wire_[a.wire + i] = cells_[a.from + i].value;
}

void Memory::complete(Node node, Node sender) {
  const Act& a = acts_[node];
  if (a.of_others) check_owners(node);
  --left_[rank_of_[node]];
  for (uint32_t i = 0; i < a.count; ++i) {
    if (a.kind == Kind::send) {
      --cells_[a.from + i].readers;
      continue;
    }
    Cell& to = cells_[a.to + i];
    if (a.kind == Kind::receive) to.value = wire_[acts_[sender].wire + i];
    if (a.kind == Kind::reduce) to.value = reduced(node, cells_[a.from + i].value, cells_[a.with + i].value);
    if (a.kind == Kind::copy) to.value = copied(node, cells_[a.from + i].value);
    if (a.kind == Kind::finish) to.value = finished(node, cells_[a.from + i].value);
    if (reads_from(a.kind) && a.from != a.to) --cells_[a.from + i].readers;
    if (reads_with(a.kind) && a.with != a.to) --cells_[a.with + i].readers;
    to.writer = kNobody;
  }
}

Value Memory::reduced(Node node, const Value& a, const Value& b) const {
  if (a.index != b.index) blame(node, "adds element ", b.index, " of the tensor to element ", a.index);
  if (a.ranks & b.ranks) blame(node, "adds a contribution twice to element ", a.index, " of the tensor");
  if (a.prescaled != b.prescaled) blame(node, "adds a scaled and an unscaled value");
  if (a.finished || b.finished) blame(node, "adds to a finished value");
  return {a.ranks | b.ranks, a.index, trace ? trace->add(a.sum, b.sum) : 0, a.prescaled, false};
}

Value Memory::finished(Node node, Value v) const {
  if (v.ranks != everyone_) blame(node, "finishes element ", v.index, " of the tensor before its sum is complete");
  if (v.finished) blame(node, "finishes element ", v.index, " of the tensor twice");
  v.finished = true;
  return v;
}

Value Memory::copied(Node node, Value v) const {
  if (!acts_[node].prescale) return v;
  if (v.prescaled || v.finished) blame(node, "scales element ", v.index, " of the tensor twice");
  v.prescaled = true;
  return v;
}

std::vector<Value> Memory::output(int rank) const {
  std::vector<Value> values;
  for (size_t i = 0; i < problem_.expected[rank].size(); ++i) values.push_back(cells_[base_[rank][1] + i].value);
  return values;
}

void Memory::check_outputs() const {
  for (size_t r = 0; r < schedules_.size(); ++r) {
    const std::vector<Value>& expected = problem_.expected[r];
    for (size_t i = 0; i < expected.size(); ++i) {
      const Value& v = cells_[base_[r][1] + i].value;
      if (v == expected[i] || expected[i].ranks == 0) continue;
      fail(ErrorKind::internal, "simulation: rank ", r, " ends with a wrong output element ", i, ": element ", v.index,
           " of ranks ", std::hex, v.ranks, std::dec, v.prescaled ? " scaled" : "", v.finished ? " finished" : "",
           ", not element ", expected[i].index, " of ranks ", std::hex, expected[i].ranks, std::dec,
           expected[i].prescaled ? " scaled" : "", expected[i].finished ? " finished" : "", " (ranks as bits)");
    }
  }
}

std::string Memory::name(Node node) const {
  const int rank = rank_of_[node];
  return "rank " + std::to_string(rank) + ", move " + std::to_string(node - first_[rank]) + " (" +
         describe(schedules_[rank].moves[node - first_[rank]]) + ")";
}

}  // namespace ringdp::simulate
