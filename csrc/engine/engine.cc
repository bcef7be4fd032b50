#include "engine/engine.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "world/gpus.h"

namespace ringdp {

Error peer_left(const Submission& s, ProcessSet& set, int left) {
  const int failed = set.meetings().first_failed();
  const std::string why =
      failed < 0 ? set.has_left(left)
                 : "rank " + std::to_string(set.data->name_of(failed)) + " has failed; its own message says why";
  return {ErrorKind::peer,
          "rank " + std::to_string(set.name()) + ": " + name_of(s.kind) + " '" + s.name + "' cannot complete: " + why};
}

// One that nobody reads but this process.
std::shared_ptr<Watch> watch_of_its_own(const Membership& everybody) {
  const Flight::Owner owner{everybody.data->rank(), everybody.data->size(), 0, 1, ""};
  return std::make_shared<Watch>(std::make_shared<Flight>("", owner));
}

Engine::Engine(Options options, uint32_t generation, Membership everybody, std::shared_ptr<Watch> watch)
    : options_(options),
      generation_(generation),
      rank_(everybody.data->rank()),
      size_(everybody.data->size()),
      abort_through_(everybody.data.get()),
      chooser_(make_chooser(placement_of(everybody), options.algorithm, options.profile)),
      host_(everybody.neighbourhood.host),
      watch_(watch ? std::move(watch) : watch_of_its_own(everybody)),
      inject_(options.inject, rank_),
      crowded_(std::max(static_cast<int>(everybody.neighbourhood.members.size()), everybody.placement.ranks_per_host) >
               sysconf(_SC_NPROCESSORS_ONLN)),
      work_bell_(host_ ? host_->head(rank_).bell : own_bell_),
      roll_call_(options_, *everybody.control, *watch_),
      alarm_(*everybody.control, *watch_) {
  watch_->flight().head().generation = generation;
  watch_->flight().head().standing.store(Standing::running);
  known_.emplace(0, chooser_);
  number_in_.emplace(0, rank_);
  keep(new_sets(0, std::move(everybody), chooser_));
  thread_ = std::thread([this] { main(); });
}

std::unique_ptr<ProcessSet> Engine::new_set(int id, Membership membership, Chooser chooser) {
  return std::make_unique<ProcessSet>(id, std::move(membership), std::move(chooser), options_.checksum,
                                      [this](const Meetings::Meeting& meeting, std::byte* mine, const std::byte* theirs,
                                             bool mine_is_left) { merge(meeting, mine, theirs, mine_is_left); });
}

Engine::~Engine() {
  if (thread_.joinable()) shutdown(0);
}

// --- turns ---------------------------------------------------------------------------------------------------------

// `own`: what the caller who takes this turn has just submitted.
bool Engine::look_at_everything(Submission* own) {
  std::optional<Gpu::Current> current;  // MPI may look for it, in whatever call it goes on with a message from a GPU
  if (gpu_of_mpi_) current.emplace(*gpu_of_mpi_);
  bool moved = has_arrivals_.load(std::memory_order_acquire) && take_arrivals();
  if (own) {
    take_named(std::move(*own), process_set(own->process_set));
    moved = true;
  }
  for (auto& [id, set] : sets_) {
    moved |= listen(*set);
    if (set->gpus && !set->gpus->is_decided()) moved |= find_way(*set);
  }
  if (!active_.empty() || !waiting_.empty()) moved |= advance_operations();
  if (!launches_.empty()) moved |= advance_launches();
  if (!in_levels_.empty()) moved |= advance_levels();
  if (left_) leave_levels();
  if (moved) {
    still_ = 0;
    return true;
  }
  if (++still_ == kStill) last_move_ = Clock::now();
  if (still_ % 16 == 0 || pause_.count() > 0) {  // these look at the clock; who rests has time for it
    check_deadlines();
    check_departures();
    look_for_dead();
  }
  return false;
}

bool Engine::take_arrivals() {
  bool leaving;
  {
    std::lock_guard lock(mutex_);
    taken_.swap(arrivals_);
    leaving = leaving_;
    has_arrivals_.store(false, std::memory_order_relaxed);
  }
  for (Arrival& arrival : taken_) take(arrival);
  const bool any = !taken_.empty();
  taken_.clear();
  left_ |= leaving;  // what has been agreed on or belongs to a plan still runs: other ranks may count on it
  for (auto& [id, set] : sets_)
    if (left_ && !set->is_level()) leave(*set);
  return any;
}

void Engine::take(Arrival& arrival) {
  if (!arrival.new_sets.empty()) return keep(std::move(arrival.new_sets));
  Submission& s = arrival.submission;
  ProcessSet& set = process_set(s.process_set);
  if (s.lane >= 0 && set.lanes.count(s.lane) == 0) {
    s.handle->fail(Error(ErrorKind::internal, "there is no plan " + std::to_string(s.lane)));
  } else if (s.lane >= 0 && set.lanes[s.lane].broken) {
    s.handle->fail(Error(ErrorKind::peer, "plan " + std::to_string(s.lane) + " has failed in an earlier step"));
  } else if (arrival.is_vote) {
    Lane& lane = set.lanes[s.lane];
    record_vote(set.id, s.lane, lane.votes_begun + lane.votes.size() - !lane.votes.empty(), *s.handle);
    lane.votes.push_back({std::move(arrival.vote), s.handle, lane.next});
    if (lane.votes.size() == 1) begin_vote(set, s.lane);
  } else if (s.lane >= 0) {
    take_planned(std::move(s), set);
  } else {
    take_named(std::move(s), set);
  }
}

void Engine::take_named(Submission&& s, ProcessSet& set) {
  if (s.slot < 0) {
    // What joined ranks submit, too, meets whatever era a rank is in: the last join() may end on some ranks before others.
    s.era = s.awaits_joined ? 0 : set.meetings().era();
    ++set.since_join;
  }
  if (s.name.empty() && s.member > 0) {  // it was taken right after the others of its group
    Name name = unnamed_member(set.unnamed - 1, s.member);
    s.name = std::move(name.text);
    s.key = name.key;
    s.slot = kUnnamedSlots;  // none
  } else if (s.name.empty()) {
    s.slot = static_cast<int>(set.unnamed++ % kUnnamedSlots);
    s.name = unnamed(s.slot).text;
    s.key = unnamed(s.slot).key;
    if (set.slots_taken[s.slot]) {
      queued_[{set.id, s.slot}].push_back(std::move(s));
      return;
    }
    set.slots_taken.set(s.slot);
  }
  record(s, 0);
  if (set.left) {
    s.handle->fail(closed_error());
    return;
  }
  if (set.meetings().first_left() >= 0) {
    release_name(s);
    s.handle->fail(peer_left(s, set, set.meetings().first_left()));
    return;
  }
  if (s.kind == OpKind::join) {
    set.divides_by_active = s.divides_by_active;
    set.meetings().join();
  }
  tell(std::move(s), set);
}

void Engine::take_planned(Submission&& s, ProcessSet& set) {
  Lane& lane = set.lanes[s.lane];
  const uint64_t sequence = lane.next++;
  record(s, sequence);
  start(std::move(s), set, sequence, Describe::no);
}

// In the flight recorder.
void Engine::record(const Submission& s, uint64_t sequence) {
  const std::string bucket = s.lane >= 0 ? s.bucket_name() : std::string();
  const std::string& name = s.lane >= 0 ? bucket : s.name;
  const Flight::Entry entry{static_cast<uint8_t>(s.kind),
                            s.process_set,
                            std::max(s.lane, 0),
                            s.lane >= 0 ? s.plan_digest : s.key,
                            sequence,
                            s.count() * size_of(s.dtype),
                            name.data(),
                            name.size(),
                            s.handle->made()};
  s.handle->note_in(watch_->flight(), watch_->flight().begin(entry, Stage::submit));
}

void Engine::record_vote(int process_set, int lane, uint64_t number, Handle& handle) {
  const std::string name = "plan " + std::to_string(lane);
  const Flight::Entry entry{FlightRecord::kVote, process_set, lane,         0, number, 0,
                            name.data(),         name.size(), handle.made()};
  handle.note_in(watch_->flight(), watch_->flight().begin(entry, Stage::agree));
}

bool Engine::inject(Stage stage, Submission& s, bool by_messages) {
  if (!inject_.any()) return false;
  if (stage == Stage::submit) s.nth = submitted_.fetch_add(1);
  return inject_.at(stage, s, s.nth, watch_->flight().head().step.load(), by_messages);
}

// Operations start within the window of their lane, counted from the earliest that has not ended. Named ones may come in
// another order on each rank, but the earliest that all have come to starts at once on every rank.
void Engine::start(Submission s, ProcessSet& set, uint64_t ticket, Describe describe, std::vector<Whereabouts> told) {
  if (describe == Describe::no && goes_by_gpu(s, set, ticket)) return;
  if (describe == Describe::no && s.in_graph && !s.by_nccl) return fail_agreed(set, s, ticket, not_in_a_graph(s, set));
  const int lane_id = std::max(s.lane, 0);
  const uint64_t sequence = Tickets::sequence_of(ticket);
  Lane& lane = set.lanes[lane_id];
  auto& waiting = waiting_[{set.id, lane_id}];
  if (!lane.may_start(sequence, window_of(s, set))) {
    const auto later = [&](const Start& other) { return Tickets::sequence_of(other.ticket) > sequence; };
    const auto place = std::find_if(waiting.begin(), waiting.end(), later);
    waiting.insert(place, Start{std::move(s), ticket, describe, std::move(told)});
    return;
  }
  lane.started.insert(sequence);
  timeline_.stamp(s.came.reduce);
  const bool flips = inject(Stage::reduce, s, !set.reduces_in_shared_memory() && !s.by_mpi);
  active_.emplace_back(std::move(s), set, ticket, generation_, options_, describe, std::move(told), counters_);
  if (flips) active_.back().flip_what_comes();
}

// By MPI from GPU to GPU each has memory of its own on the GPU, as much as its tensor: few at a time.
uint64_t Engine::window_of(const Submission& s, const ProcessSet& set) {
  constexpr uint64_t kWindowOnGpu = 4;
  return s.by_mpi ? std::min(set.window(), kWindowOnGpu) : set.window();
}

bool Engine::start_waiting() {
  bool moved = false;
  for (auto& [key, waiting] : waiting_) {
    ProcessSet& set = process_set(key.first);
    Lane& lane = set.lanes[key.second];
    const auto may_start = [&](const Start& next) {
      return lane.may_start(Tickets::sequence_of(next.ticket), window_of(next.submission, set));
    };
    while (!waiting.empty() && may_start(waiting.front())) {
      Start next = std::move(waiting.front());
      waiting.pop_front();
      start(std::move(next.submission), set, next.ticket, next.describe, std::move(next.told));
      moved = true;
    }
  }
  return moved;
}

bool Engine::advance_operations() {
  bool moved = false;
  for (auto it = active_.begin(); it != active_.end();) {
    moved |= it->progress();
    const auto here = it++;
    if (!here->done()) continue;
    here->submission().by_nccl && !here->failed() ? sizes_are_known(*here) : finished(*here);
    active_.erase(here);
  }
  break_lanes();
  return start_waiting() || moved;
}

// The name is free before anybody hears of the end: who has waited for a name may use it again at once.
void Engine::finished(Operation& operation) {
  ProcessSet& set = process_set(operation.process_set());
  set.lanes[operation.lane()].started.erase(operation.sequence());
  if (operation.failed()) has_failed(set, operation.lane(), operation.sequence());
  if (operation.failed() && operation.error().kind() == ErrorKind::mismatch) note_difference(operation.submission());
  ended(operation.submission(), set, operation.sequence());
  operation.deliver();
  if (operation.failed() && operation.submission().group) fail_group(operation.submission(), operation.error());
}

// Before its name is free. A rank that has joined does not know whether it was of a group.
void Engine::note_difference(const Submission& s) {
  if (s.lane >= 0 || s.slot >= 0 || s.member > 0 || !(s.group || s.absent)) return;
  std::lock_guard lock(mutex_);
  in_flight_.group_differed(s.process_set, s.key);
}

// The others of the group: they will fail as this one did, but for those that some rank has not submitted at all.
void Engine::fail_group(const Submission& failed, const Error& error) {
  agreeing_.for_each([&](uint64_t, Submission& s) {
    if (s.group != failed.group) return;
    s.handle->give_up_memory();
    s.handle->fail(error);
  });
}

// Its name and, where it was drawn, its ticket are free again.
void Engine::ended(const Submission& s, ProcessSet& set, uint64_t ticket) {
  timeline_.ended(s);
  if (inject_.any()) inject_.at(Stage::done, s, s.nth, watch_->flight().head().step.load());
  if (s.lane >= 0) return;
  if (set.draws_tickets() && ticket != Note::kNoTicket) set.tickets.give_back(Tickets::sequence_of(ticket));
  release_name(s);
}

void Engine::release_name(const Submission& s) {
  if (s.lane >= 0 || s.absent) return;
  if (s.slot < 0) {
    std::lock_guard lock(mutex_);
    in_flight_.remove(s.process_set, s.key);
    return;
  }
  if (s.slot == kUnnamedSlots) return;
  ProcessSet& set = process_set(s.process_set);
  set.slots_taken.reset(s.slot);
  if (queued_.empty()) return;
  const auto queue = queued_.find({set.id, s.slot});
  if (queue == queued_.end()) return;
  Submission next = std::move(queue->second.front());
  queue->second.pop_front();
  if (queue->second.empty()) queued_.erase(queue);
  set.slots_taken.set(next.slot);
  take_named(std::move(next), set);
}

bool Engine::anything_active() const {
  if (!active_.empty() || !launches_.empty() || !in_levels_.empty()) return true;
  for (const auto& [id, set] : sets_)
    for (const auto& [lane_id, lane] : set->lanes)
      if (!lane.votes.empty()) return true;
  return waits_for_gpus();
}

// Then nobody rings: they must be looked at.
bool Engine::waits_for_gpus() const {
  return !launches_.empty() || std::any_of(sets_.begin(), sets_.end(), [](const auto& entry) {
    return entry.second->gpus && !entry.second->gpus->waiting.empty();
  });
}

bool Engine::anything_waiting() const {
  return std::any_of(waiting_.begin(), waiting_.end(), [](const auto& entry) { return !entry.second.empty(); });
}

bool Engine::anything_pending() const {
  return !agreeing_.empty() ||
         std::any_of(sets_.begin(), sets_.end(), [](const auto& entry) { return entry.second->meetings().busy(); });
}

ProcessSet& Engine::process_set(int id) { return *sets_.at(id); }

}  // namespace ringdp
