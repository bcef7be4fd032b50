// What callers ask of an engine, from any thread: it is noted under `mutex_`, and whoever takes the next turn finds it.
#include <sched.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "collectives/halves.h"
#include "engine/engine.h"

namespace ringdp {

void Engine::check_open() const {
  if (broken_) throw Error(*broken_);
  if (leaving_) throw closed_error();
}

const Chooser& Engine::known(int process_set) const {
  const auto set = known_.find(process_set);
  if (set == known_.end())
    fail(ErrorKind::usage, "rank ", rank_, " is not in process set ", process_set, ", or that was removed");
  return set->second;
}

// NCCL knows a rank by its GPU.
void Engine::admit_gpu(const Submission& s) {
  const Gpu& gpu = s.place->gpu;
  const std::string what = s.lane >= 0 ? s.bucket_name() : "'" + s.name + "'";
  const size_t item = size_of(s.dtype);
  for (const void* at : {s.input, static_cast<const void*>(s.output)})  // a GPU stops at them, and works never again
    if (reinterpret_cast<uintptr_t>(at) % item != 0)
      fail(ErrorKind::usage, "rank ", rank_, ": ", what, " lies at ", at, " of ", gpu.label(), ": elements of ", item,
           " bytes need an address that ", item, " divides");
  const int first = gpu_of_set_.emplace(s.process_set, gpu.ordinal()).first->second;
  if (gpu.ordinal() != first)
    fail(ErrorKind::usage, "rank ", rank_, ": ", what, " lies on ", gpu.label(), ", and process set ", s.process_set,
         " exchanges tensors of ", Gpu::of(first).label(),
         " on this rank: a rank uses one GPU (choose it by local_rank())");
}

// From now on the name is in flight.
void Engine::admit(Submission& s) {
  check_open();
  const Chooser& chooser = known(s.process_set);
  validate(s, rank_, chooser.placement.ranks);
  if (s.wide && !casts_under_way(chooser, s.count() * size_of(s.dtype), s.dtype))
    fail(ErrorKind::usage, "rank ", rank_, ": what goes within a host, or along with its name, is not cast under way");
  if (s.on_gpu) admit_gpu(s);
  timeline_.stamp(s.came.submit);
  if (s.lane >= 0 || s.name.empty()) return;
  if (is_reserved(s.name))
    fail(ErrorKind::usage, "rank ", rank_, ": '", s.name, "': names that begin with '", kReservedPrefix,
         "' are those of unnamed calls; use another");
  const bool follows = s.member > 0;
  s.key = key_of(s.name, follows ? in_flight_.times_differed(s.process_set, s.group->members[0].name) : 0);
  if (!in_flight_.add(s.process_set, s.key))
    fail(ErrorKind::duplicate, "rank ", rank_, ": ", name_of(s.kind), " '", s.name,
         "': an operation of this name is still in flight; wait for it first, or use another name");
}

// Where the caller's stream is now: what it has computed so far is what is exchanged. Or what it will have computed, at each
// replay of the CUDA graph that it is captured in.
void Engine::note_stream(Submission& s) {
  s.on_gpu = s.place != nullptr;
  if (!s.on_gpu) return;
  {
    std::lock_guard lock(mutex_);
    check_open();  // a GPU that has failed says less
  }
  Gpu& gpu = s.place->gpu;
  const cuda::Stream stream = stream_at(s.place->stream);
  s.graph = CapturedGraph::of(gpu, stream);
  s.in_graph = s.graph != nullptr;
  if (s.in_graph) s.graph_number = s.graph->number_in(s.process_set);
  s.place->ready = s.in_graph ? gpu.record_in_graph(stream) : gpu.record(stream);
}

void Engine::before_look(const Submission& submission) {
  inject_.before_look(submission, submitted_.load(), watch_->flight().head().step.load());
}

std::shared_ptr<Handle> Engine::submit(Submission submission) {
  note_stream(submission);
  inject(Stage::submit, submission);
  const bool in_graph = submission.in_graph;
  auto handle = submission.handle = std::make_shared<Handle>();
  {
    std::lock_guard lock(mutex_);
    admit(submission);
    Counters::add(submission.lane >= 0 ? counters_.buckets : counters_.named);
    arrivals_.push_back({});
    arrivals_.back().submission = std::move(submission);
    has_arrivals_ = true;
  }
  wake();
  if (in_graph) wait_until_captured(*handle);
  return handle;
}

// Before the call returns all that it asks for is a part of the graph: the caller may end the capture then, or add to it, and
// CUDA does not say that two threads may add to a graph at once. The engine ends the wait in time.
void Engine::wait_until_captured(Handle& handle) {
  while (!wait(handle, Deadline::in(Seconds(options_.timeout)), nullptr)) {
  }
}

// All are taken or none.
std::vector<std::shared_ptr<Handle>> Engine::submit_group(std::vector<Submission> submissions,
                                                          const std::string& layout) {
  std::vector<std::shared_ptr<Handle>> handles;
  for (Submission& submission : submissions) note_stream(submission), inject(Stage::submit, submission);
  const bool in_graph = !submissions.empty() && submissions[0].in_graph;
  const auto group = group_of(submissions, layout);
  for (size_t i = 0; i < submissions.size(); ++i)
    submissions[i].group = group, submissions[i].member = static_cast<int>(i);
  {
    std::lock_guard lock(mutex_);
    size_t admitted = 0;
    try {
      for (; admitted < submissions.size(); ++admitted) admit(submissions[admitted]);
    } catch (...) {
      for (size_t i = 0; i < admitted; ++i)
        if (!submissions[i].name.empty()) in_flight_.remove(submissions[i].process_set, submissions[i].key);
      throw;
    }
    for (Submission& submission : submissions) {
      Counters::add(counters_.named);
      handles.push_back(submission.handle = std::make_shared<Handle>());
      arrivals_.push_back({});
      arrivals_.back().submission = std::move(submission);
    }
    has_arrivals_ = true;
  }
  wake();
  if (in_graph)
    for (const auto& handle : handles) wait_until_captured(*handle);
  return handles;
}

std::shared_ptr<Handle> Engine::vote(int process_set, int lane, std::vector<uint64_t> fields) {
  auto handle = std::make_shared<Handle>();
  {
    std::lock_guard lock(mutex_);
    check_open();
    known(process_set);
    arrivals_.push_back({});
    Arrival& arrival = arrivals_.back();
    arrival.is_vote = true;
    arrival.vote = std::move(fields);
    arrival.submission.process_set = process_set;
    arrival.submission.lane = lane;
    arrival.submission.handle = handle;
    has_arrivals_ = true;
  }
  wake();
  return handle;
}

void Engine::add_process_set(int id, Membership membership) {
  {
    std::lock_guard lock(mutex_);
    check_open();
    if (known_.count(id) > 0) fail(ErrorKind::usage, "process set ", id, " is there already");
    const Chooser& chooser =
        known_.emplace(id, make_chooser(placement_of(membership), options_.algorithm, options_.profile)).first->second;
    const auto& ranks = membership.ranks;
    number_in_[id] = static_cast<int>(std::find(ranks.begin(), ranks.end(), rank_) - ranks.begin());
    arrivals_.push_back({});
    arrivals_.back().new_sets = new_sets(id, std::move(membership), chooser);
    has_arrivals_ = true;
  }
  wake();
}

Engine::Place Engine::place_in(int process_set) {
  std::lock_guard lock(mutex_);
  check_open();
  const int ranks = known(process_set).placement.ranks;
  return {number_in_.at(process_set), ranks};
}

Chunk Engine::own_chunk(int process_set, uint64_t count, Dtype dtype, bool on_gpu) {
  std::lock_guard drive(drive_);
  turn();  // the set may just have been added
  const ProcessSet& set = this->process_set(process_set);
  const uint64_t bytes = count * size_of(dtype);
  const Algorithm chosen = on_gpu ? set.chooser.choose_in_one_level(bytes, dtype) : set.chooser.choose(bytes, dtype);
  return ringdp::own_chunk(chosen, set.levels, set.size(), set.rank(), count);
}

bool Engine::is_idle(int process_set) {
  std::lock_guard drive(drive_);
  turn();  // it may just have been added
  check_open();
  const auto set = sets_.find(process_set);
  return set != sets_.end() && becomes_idle(*set->second);
}

// With drive_ locked. What this rank has sent last may take a while until its peer, whose engine does not sleep over it,
// has received it.
bool Engine::becomes_idle(ProcessSet& set) {
  const int id = set.id;
  const auto of_set = [id](const auto& entry) { return entry.first.first == id && !entry.second.empty(); };
  const auto in_set = [id](const Operation& operation) { return operation.process_set() == id; };
  bool busy =
      std::any_of(waiting_.begin(), waiting_.end(), of_set) || std::any_of(queued_.begin(), queued_.end(), of_set) ||
      std::any_of(active_.begin(), active_.end(), in_set) || std::any_of(parked_.begin(), parked_.end(), in_set);
  agreeing_.for_each([&](uint64_t, Submission& submission) { busy |= submission.process_set == id; });
  for (const auto& [lane_id, lane] : set.lanes) busy |= !lane.votes.empty();
  for (const auto& [number, launch] : launches_) busy |= launch.set.id == id;
  for (const auto& [number, levels] : in_levels_) busy |= levels.set.id == id;
  // What a GPU still does is over for its caller, who may not know that it goes on.
  const auto on_gpu = [this, id] {
    watch_gpus();
    return std::any_of(running_.begin(), running_.end(), [id](const Running& one) { return one.set == id; });
  };
  const Deadline deadline = Deadline::in(Seconds(options_.timeout));
  for (; !busy && (on_gpu() || set.meetings().busy()); turn()) {
    sched_yield();
    if (deadline.passed() || broken_) return false;
  }
  return !busy && (!set.in_host || (becomes_idle(*set.in_host) && becomes_idle(*set.between_hosts)));
}

bool Engine::remove_process_set(int id) {
  std::lock_guard drive(drive_);
  const auto set = sets_.find(id);
  if (set == sets_.end()) return false;
  decltype(known_)::node_type known;
  {
    std::lock_guard lock(mutex_);
    known = known_.extract(id);  // nothing more is accepted
  }
  if (!becomes_idle(*set->second)) {
    std::lock_guard lock(mutex_);
    known_.insert(std::move(known));
    return false;
  }
  const bool has_levels = set->second->in_host != nullptr;
  forget(id);
  if (has_levels) forget(ProcessSet::in_host_of(id)), forget(ProcessSet::between_hosts_of(id));
  return true;
}

void Engine::forget(int process_set) {
  const auto leave_out = [process_set](auto& by_set) {
    for (auto entry = by_set.begin(); entry != by_set.end();)
      entry = entry->first.first == process_set ? by_set.erase(entry) : std::next(entry);
  };
  leave_out(queued_);
  leave_out(waiting_);
  this->process_set(process_set).doubling.cancel();
  sets_.erase(process_set);
}

bool Engine::is_broken() {
  std::lock_guard lock(mutex_);
  return broken_.has_value() || watch_->has_fault();  // the watch knows it before the engine's next turn
}

void Engine::begin_shutdown(uint64_t steps) {
  watch_->flight().head().standing.store(Standing::leaving);
  {
    std::lock_guard lock(mutex_);
    if (!leaving_) steps_ = steps;  // the engine's thread reads it from then on
    leaving_ = true;
    has_arrivals_ = true;
  }
  wake();
}

bool Engine::shutdown(double seconds, uint64_t steps) {
  begin_shutdown(steps);
  const auto began = Clock::now();
  {
    std::unique_lock lock(mutex_);
    while (!stop_ && watch_->seconds_since(began) < seconds) ended_.wait_for(lock, std::chrono::milliseconds(10));
  }
  const bool all_left = stop_;
  stop_ = true;
  wake();
  if (thread_.joinable()) thread_.join();
  return all_left;
}

int64_t Engine::abandon() {
  abandoned_ = stop_ = true;
  wake();
  if (thread_.joinable()) thread_.join();
  std::lock_guard drive(drive_);
  int64_t pending = 0;
  for (const auto& [id, set] : sets_) pending += set->data->pending() + set->control->pending();
  return pending;
}

// The reports of other hosts will say why; a job that cannot tell them ends all the same.
void Engine::abort(int code) {
  constexpr Seconds kToTell(0.05);
  const Deadline deadline = Deadline::in(kToTell);
  std::unique_lock drive(drive_, std::try_to_lock);
  while (watch_->has_fault() && !drive && !deadline.passed()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    (void)drive.try_lock();
  }
  if (watch_->has_fault() && drive) {
    alarm_.tell_of_exception(watch_->verdict());
    finish_telling(kToTell);
  }
  abort_through_->abort(code);
}

void Engine::forget_after_fork() {
  if (thread_.joinable()) thread_.detach();
}

void Engine::wake() {
  if (callers_ == 0 || stop_) thread_bell_.ring();
  work_bell_.ring();
}

}  // namespace ringdp
