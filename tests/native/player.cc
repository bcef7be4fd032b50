#include "player.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "agree/digest.h"
#include "exchanged.h"

namespace ringdp::tests {

namespace {

constexpr std::byte kUntouched{0x4d};
constexpr size_t kSpare = 128;  // bytes: also for the longer submission of a rank that differs

bool brings_output(OpKind kind) { return kind == OpKind::allgather || kind == OpKind::alltoall; }

}  // namespace

Tensor::Tensor(size_t bytes, std::shared_ptr<Host> host) : host_(std::move(host)) {
  if (host_) block_ = host_->heap().allocate(bytes);
  if (block_ == nullptr) own_.resize(bytes);
  std::memset(data(), static_cast<int>(kUntouched), bytes);
}

Tensor& Tensor::operator=(Tensor&& other) noexcept {
  std::swap(own_, other.own_);
  std::swap(host_, other.host_);
  std::swap(block_, other.block_);
  return *this;
}

Tensor::~Tensor() {
  if (block_ != nullptr) host_->heap().free(block_);
}

void Tensor::fill(const std::vector<std::byte>& bytes) {
  if (!bytes.empty()) std::memcpy(data(), bytes.data(), bytes.size());
}

std::vector<std::byte> Tensor::beginning(size_t bytes) { return {data(), data() + bytes}; }

// --- what it submits -----------------------------------------------------------------------------------------------

bool Player::next() {
  if (next_ == script().size()) return false;
  const Action& action = script()[next_];
  if (action.kind == Action::await && !all_done()) return false;
  ++next_;
  if (action.kind == Action::submit) submit(action.tasks);
  if (action.kind == Action::leave) engine_.begin_shutdown(), left_ = true;
  return true;
}

bool Player::all_done() const {
  return std::all_of(parts_.begin(), parts_.end(), [](const Part& p) { return !p.handle || p.handle->done(); });
}

// Half of the waits take the engine's turns.
void Player::play(Deadline deadline) {
  while (!is_over() && !deadline.passed()) {
    if (next()) continue;
    for (size_t i = 0; i < parts_.size(); ++i) {
      Handle* handle = parts_[i].handle.get();
      if (handle == nullptr || handle->done()) continue;
      if ((i + scenario_.seed) % 2 == 0)
        handle->sleep_until(deadline.end());
      else if (!engine_.wait(*handle, deadline, nullptr))
        return;
    }
  }
}

void Player::submit(const std::vector<int>& tasks) {
  try {
    if (task(tasks[0]).is_vote) {
      std::vector<uint64_t> words = fields(tasks[0], rank_);
      if (task(tasks[0]).culprit == rank_) words.push_back(0);
      part(tasks[0]).handle = engine_.vote(0, lane(), words);
      return;
    }
    std::vector<Submission> submissions;
    for (const int index : tasks) submissions.push_back(submission(index));
    if (task(tasks[0]).group < 0) {
      part(tasks[0]).handle = engine_.submit(std::move(submissions[0]));
      return;
    }
    const auto handles = engine_.submit_group(std::move(submissions));
    for (size_t i = 0; i < tasks.size(); ++i) part(tasks[i]).handle = handles[i];
  } catch (const Error& error) {
    for (const int index : tasks) part(index).refused = error.what();
  }
}

int Player::lane() {
  Handle& plan = *part(0).handle;
  if (plan.failed()) fail(ErrorKind::internal, "there is no plan: ", plan.error().what());
  return plan.result().lane;
}

Submission Player::submission(int index) {
  const Task& t = task(index);
  Submission s;
  s.kind = t.kind;
  s.name = t.name;
  s.process_set = t.set;
  s.dtype = t.dtype;
  s.op = t.op;
  s.prescale = t.prescale;
  s.postscale = t.postscale;
  s.root = t.root;
  if (t.kind == OpKind::open_plan) s.awaits_joined = true, s.text = "weights float32";
  if (t.kind == OpKind::open_plan || t.kind == OpKind::join) return s;
  if (t.is_planned()) s.lane = lane(), s.bucket = t.bucket, s.plan_digest = 7;
  place(index, s);
  if (t.culprit == rank_) differ(index, s);
  return s;
}

// In one of several kinds of memory, as callers have them.
void Player::place(int index, Submission& s) {
  const Task& t = task(index);
  Part& p = part(index);
  const std::vector<int64_t> numbers = contribution(scenario_, index, rank_);
  const std::vector<std::byte> bytes = encoded(t.dtype, numbers);
  const size_t room = std::max(bytes.size(), bytes_of_output(index));
  if (t.kind != OpKind::barrier) s.shape = {numbers.size()};
  const uint64_t drawn = Digest().add(scenario_.seed).add(uint64_t(index)).add(uint64_t(rank_)).value();
  const bool is_right = t.culprit != rank_, heap = drawn % 2 == 0 && is_right;
  p.in_place = t.is_planned() || (t.kind == OpKind::allreduce && drawn / 2 % 2 == 0 && is_right);
  p.input = Tensor(8 * room + kSpare, heap ? engine_.host() : nullptr);
  p.input.fill(bytes);
  p.output = p.in_place ? Tensor() : Tensor(8 * room + kSpare, heap ? engine_.host() : nullptr);
  s.input = p.input.data();
  s.output = p.in_place ? p.input.data() : p.output.data();
  if (brings_output(t.kind)) s.room = drawn % 3 == 0 ? bytes_of_output(index) : 0;
  if (brings_output(t.kind) && s.room == 0) s.output = nullptr;
  for (size_t to = 0; t.kind == OpKind::alltoall && to < scenario_.sets[static_cast<size_t>(t.set)].size(); ++to)
    s.splits.push_back(split(t, scenario_.place(index, rank_), static_cast<int>(to)));
  const bool is_narrow = t.dtype == Dtype::bfloat16 || t.dtype == Dtype::float16;
  p.is_wide = p.in_place && !t.is_planned() && t.group < 0 && is_narrow && drawn / 4 % 2 == 0 &&
              engine_.casts_under_way(t.set, bytes.size(), t.dtype);
  if (!p.is_wide) return;
  p.wide = Tensor(4 * numbers.size() + kSpare, nullptr);
  p.wide.fill(encoded(Dtype::float32, numbers));
  s.wide = {Dtype::float32, p.wide.data(), p.wide.data()};
}

// In what can differ: the kind of all-gathers, whose counts may.
void Player::differ(int index, Submission& s) const {
  const Task& t = task(index);
  switch (t.differs) {
    case Differs::count:
      if (s.shape.empty() || s.first_may_differ()) break;
      ++s.shape[0];
      return;
    case Differs::op:
      s.op = s.op == ReduceOp::max ? ReduceOp::min : ReduceOp::max;
      return;
    case Differs::scale:
      s.prescale = 3;
      return;
    case Differs::kind:
      if (t.is_planned()) {
        s.plan_digest = 8;
        return;
      }
      s.kind = s.kind == OpKind::allreduce ? OpKind::broadcast : OpKind::allreduce;
      s.root = s.kind == OpKind::broadcast ? 0 : -1;
      s.splits.clear();
      s.room = 0;
      if (s.shape.empty()) s.shape = {1};
      if (s.output == nullptr) s.output = const_cast<void*>(s.input);
      return;
    default:
      break;
  }
  s.dtype = s.dtype == Dtype::int32 ? Dtype::float32 : Dtype::int32;
}

// --- how it has ended ----------------------------------------------------------------------------------------------

size_t Player::bytes_of_output(int index) const {
  return size_of(task(index).dtype) * expected(scenario_, index, rank_).size();
}

std::vector<std::byte> Player::right(int index) {
  return encoded(part(index).is_wide ? Dtype::float32 : task(index).dtype, expected(scenario_, index, rank_));
}

std::vector<std::byte> Player::found(int index) {
  Part& p = part(index);
  const Result& result = p.handle->result();
  if (result.output) return {result.output.get(), result.output.get() + result.output_bytes};
  Tensor& output = p.is_wide ? p.wide : p.in_place ? p.input : p.output;
  return output.beginning(right(index).size());
}

Outcome Player::outcome(int index) {
  const Task& t = task(index);
  Part& p = part(index);
  if (!p.refused.empty()) return {Outcome::failed, ErrorKind::internal, p.refused};
  if (!p.handle) return {};
  if (!p.handle->done()) return {Outcome::open, ErrorKind::internal, name_of(p.handle->stage())};
  if (p.handle->failed()) {
    const Error& error = p.handle->error();
    const std::vector<int64_t> numbers = contribution(scenario_, index, rank_);
    Tensor& output = p.is_wide ? p.wide : p.in_place ? p.input : p.output;
    const std::vector<std::byte> before =
        p.in_place ? encoded(p.is_wide ? Dtype::float32 : t.dtype, numbers) : std::vector<std::byte>(16, kUntouched);
    const bool has_output = !t.is_vote && t.kind != OpKind::open_plan && t.kind != OpKind::join;
    // What the rank has given up may still be written.
    const bool same = !has_output || p.handle->memory_in_use() || output.beginning(before.size()) == before;
    return {same ? Outcome::failed : Outcome::touched, error.kind(), error.what()};
  }
  if (t.is_vote) {
    std::vector<uint64_t> least = fields(index, t.ranks[0]);
    for (const int rank : t.ranks)
      for (size_t i = 0; i < least.size(); ++i) least[i] = std::min(least[i], fields(index, rank)[i]);
    return {p.handle->result().words == least ? Outcome::right : Outcome::wrong, {}, ""};
  }
  if (t.kind == OpKind::open_plan || t.kind == OpKind::join || t.kind == OpKind::barrier)
    return {Outcome::right, {}, ""};
  return {found(index) == right(index) ? Outcome::right : Outcome::wrong, {}, ""};
}

}  // namespace ringdp::tests
