// What callers ask of an engine, from any thread: it is noted under `mutex_`, and whoever takes the next turn finds it.
#include <algorithm>
#include <utility>

#include "engine/engine.h"

namespace ringdp {

void Engine::check_open() const {
  if (broken_) throw Error(*broken_);
  if (leaving_) throw closed_error();
}

// From now on the name is in flight.
void Engine::admit(Submission& s) {
  check_open();
  const auto size = sizes_.find(s.process_set);
  if (size == sizes_.end()) fail(ErrorKind::usage, "rank ", rank_, " is not in process set ", s.process_set);
  validate(s, rank_, size->second);
  if (s.wide && !casts_under_way(s.process_set, s.count() * size_of(s.dtype), s.dtype))
    fail(ErrorKind::usage, "rank ", rank_, ": what goes within a host, or along with its name, is not cast under way");
  if (s.lane >= 0 || s.name.empty()) return;
  if (is_reserved(s.name))
    fail(ErrorKind::usage, "rank ", rank_, ": '", s.name, "': names that begin with '", kReservedPrefix,
         "' are those of unnamed calls; use another");
  s.key = key_of(s.name);
  if (!in_flight_.add(s.process_set, s.key))
    fail(ErrorKind::duplicate, "rank ", rank_, ": ", name_of(s.kind), " '", s.name,
         "': an operation of this name is still in flight; wait for it first, or use another name");
}

std::shared_ptr<Handle> Engine::submit(Submission submission) {
  auto handle = submission.handle = std::make_shared<Handle>();
  {
    std::lock_guard lock(mutex_);
    admit(submission);
    arrivals_.push_back({});
    arrivals_.back().submission = std::move(submission);
    has_arrivals_ = true;
  }
  wake();
  return handle;
}

std::shared_ptr<Handle> Engine::vote(int process_set, int lane, std::vector<uint64_t> fields) {
  auto handle = std::make_shared<Handle>();
  {
    std::lock_guard lock(mutex_);
    check_open();
    if (sizes_.count(process_set) == 0) fail(ErrorKind::usage, "rank ", rank_, " is not in process set ", process_set);
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

void Engine::add_process_set(int id, std::unique_ptr<Transport> data, std::unique_ptr<Transport> control) {
  {
    std::lock_guard lock(mutex_);
    if (!sizes_.emplace(id, data->size()).second) fail(ErrorKind::usage, "process set ", id, " is there already");
    Chooser chooser = chooser_;  // its ranks may be anywhere: as many hosts as there can be, and the same everywhere
    chooser.placement.ranks = data->size();
    chooser.placement.hosts = std::min(chooser.placement.hosts, data->size());
    chooser.placement.ranks_per_host = std::min(chooser.placement.ranks_per_host, data->size());
    chooser.placement.shared_memory = chooser.placement.two_levels = false;
    arrivals_.push_back({});
    arrivals_.back().new_set = new_set(id, std::move(data), std::move(control), std::move(chooser));
    has_arrivals_ = true;
  }
  wake();
}

bool Engine::shutdown(double seconds) {
  {
    std::lock_guard lock(mutex_);
    leaving_ = true;
    has_arrivals_ = true;
  }
  wake();
  const Deadline deadline = Deadline::in(Seconds(seconds));
  {
    std::unique_lock lock(mutex_);
    while (!stop_ && !deadline.passed()) ended_.wait_for(lock, std::chrono::milliseconds(10));
  }
  const bool all_left = stop_;
  stop_ = true;
  wake();
  if (thread_.joinable()) thread_.join();
  return all_left;
}

void Engine::abort(int code) { abort_through_->abort(code); }

void Engine::forget_after_fork() {
  if (thread_.joinable()) thread_.detach();
}

void Engine::wake() {
  if (callers_ == 0 || stop_) thread_bell_.ring();
  work_bell_.ring();
}

}  // namespace ringdp
