#include "guard/watch.h"

#include <glob.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <utility>

#include "base/elastic.h"
#include "guard/signals.h"

namespace ringdp {

namespace {

constexpr auto kTick = std::chrono::milliseconds(1000);

void print(const std::string& text) {
  const std::string line = "ringdp: " + text + "\n";
  [[maybe_unused]] const auto written = write(STDERR_FILENO, line.data(), line.size());  // in one piece
}

}  // namespace

Watch::Watch(std::shared_ptr<Flight> flight)
    : flight_(std::move(flight)), wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

Watch::~Watch() {
  close();
  for (auto& [rank, peer] : peers_)
    if (peer.pidfd >= 0) ::close(peer.pidfd);
  ::close(wake_);
}

void Watch::start(double end) {
  end_ = end;
  pauses_.begin(Clock::now());
  thread_ = std::thread([this] { main(); });
}

void Watch::place(const Flight::Owner& owner, const std::string& folder) {
  flight_->place(owner);
  folder_ = folder;
  if (!flight_->path().empty()) signals::install(*flight_, folder_);
}

void Watch::close() {
  {
    std::lock_guard lock(mutex_);
    if (std::exchange(closed_, true)) return;
  }
  stop_ = true;
  look_now();
  if (thread_.joinable()) thread_.join();
  if (has_fault()) signals::save();
  signals::remove(*flight_);
  flight_->unlink();
}

void Watch::forget_after_fork() {
  if (thread_.joinable()) thread_.detach();
}

// --- neighbours ------------------------------------------------------------------------------------------------------

std::string Watch::attach(int rank, const std::string& path, uint64_t token) {
  std::string reason;
  Peer peer;
  peer.view = FlightView::open(path, token, reason);
  if (peer.view == nullptr) return reason;
  // -1 on kernels before 5.3; and where its number means another process here, only the deadline tells.
  const FlightHead& head = peer.view->head();
  if (head.pid_space != 0 && head.pid_space == flight_->head().pid_space)
    peer.pidfd = static_cast<int>(syscall(SYS_pidfd_open, head.pid, 0));
  if (const auto now = state_of_process(head.pid); peer.pidfd >= 0 && now.state != 0 && now.born != head.born) {
    ::close(std::exchange(peer.pidfd, -1));  // it had died before, and its number was given again
    peer.seen_dead = true;
  }
  std::lock_guard lock(mutex_);
  peers_[rank] = std::move(peer);
  look_now();
  return "";
}

void Watch::attach(int rank, std::shared_ptr<Flight> of_a_thread) {
  std::lock_guard lock(mutex_);
  peers_[rank].thread = std::move(of_a_thread);
}

void Watch::set_places(std::vector<int> groups, std::vector<std::string> hosts) {
  groups_ = std::move(groups);
  hosts_ = std::move(hosts);
  sees_all_ = std::all_of(groups_.begin(), groups_.end(), [this](int group) { return group == groups_[0]; });
}

bool Watch::is_neighbour(int rank) const { return sees_all_ || group_of(rank) == group_of(flight_->head().rank); }

bool Watch::has_neighbours(int rank) const { return std::count(groups_.begin(), groups_.end(), group_of(rank)) > 1; }

Seen Watch::unreachable(int rank) const {
  Seen seen;
  seen.rank = rank;
  std::snprintf(seen.host, sizeof seen.host, "%s", hosts_[static_cast<size_t>(rank)].c_str());
  std::snprintf(seen.doing, sizeof seen.doing, "asked by host %s", text_of(flight_->head().host).c_str());
  return seen;
}

const FlightHead* Watch::head_of(int rank) const {
  if (rank == flight_->head().rank) return &flight_->head();
  std::lock_guard lock(mutex_);
  const auto peer = peers_.find(rank);
  return peer == peers_.end() ? nullptr : peer->second.head();
}

std::vector<Seen> Watch::look(const Question& question) const {
  std::vector<Seen> all{look_at(flight_->head(), flight_->records(), question)};
  std::lock_guard lock(mutex_);
  for (const auto& [rank, peer] : peers_) all.push_back(look_at(*peer.head(), peer.records(), question));
  std::sort(all.begin(), all.end(), [](const Seen& a, const Seen& b) { return a.rank < b.rank; });
  return all;
}

Seen Watch::look_at_one(int rank, const Question& question) const {
  std::lock_guard lock(mutex_);
  const Peer& peer = peers_.at(rank);
  return look_at(*peer.head(), peer.records(), question);
}

bool Watch::is_gone(const Peer& peer) {
  pollfd look{peer.pidfd, POLLIN, 0};
  return peer.seen_dead || (peer.pidfd >= 0 && poll(&look, 1, 0) == 1);
}

std::vector<int> Watch::dead() {
  std::vector<int> found;
  std::lock_guard lock(mutex_);
  for (auto& [rank, peer] : peers_) {
    peer.seen_dead = is_gone(peer);
    if (peer.seen_dead && peer.head()->standing.load() < Standing::leaving) found.push_back(rank);
  }
  // Launchers ask the others to end where one has died: those come last.
  std::stable_partition(found.begin(), found.end(),
                        [this](int rank) { return peers_.at(rank).head()->signal != SIGTERM; });
  if (!found.empty()) anybody_is_dead_ = true;
  return found;
}

std::vector<Watch::Neighbour> Watch::neighbours() {
  std::vector<Neighbour> all;
  std::lock_guard lock(mutex_);
  for (const auto& [rank, peer] : peers_) {
    const FlightHead& head = *peer.head();
    Neighbour one;
    one.rank = rank;
    one.pid = head.pid;
    one.can_be_killed = peer.pidfd >= 0;
    one.is_dead = is_gone(peer);
    one.recovers = head.recovers.load() != 0;
    const char state = one.can_be_killed && !one.is_dead ? state_of_process(head.pid).state : '?';
    one.is_stopped = state == 'T' || state == 't';
    one.patience = double(head.patient_until.load() - nanoseconds(Clock::now())) * 1e-9;
    all.push_back(one);
  }
  return all;
}

// By its pidfd: never another process, to which its number was given.
bool Watch::kill(int rank, double seconds) {
  std::unique_lock lock(mutex_);
  const Peer& peer = peers_.at(rank);
  const int pidfd = peer.pidfd;
  lock.unlock();
  if (pidfd < 0) return false;
  syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, nullptr, 0);
  pollfd gone{pidfd, POLLIN, 0};
  return poll(&gone, 1, static_cast<int>(seconds * 1000)) == 1;
}

// --- the thread ------------------------------------------------------------------------------------------------------

void Watch::look_now() {
  const uint64_t one = 1;
  [[maybe_unused]] const auto written = write(wake_, &one, sizeof one);
}

void Watch::main() {
  prctl(PR_SET_NAME, "ringdp-watch");
  while (!stop_) {
    const auto rest = look_around();
    std::vector<pollfd> all{{wake_, POLLIN, 0}};
    {
      std::lock_guard lock(mutex_);
      for (const auto& [rank, peer] : peers_)
        if (peer.pidfd >= 0 && !peer.seen_dead) all.push_back({peer.pidfd, POLLIN, 0});
    }
    poll(all.data(), all.size(), static_cast<int>(rest.count()));
    uint64_t rung;
    while (read(wake_, &rung, sizeof rung) == sizeof rung) {
    }
  }
}

// Patience is for time in which something could have been done.
void Watch::beat(Clock::time_point now) {
  const auto pause = pauses_.beat(now);
  if (pause == Clock::duration::zero()) return;
  auto& until = flight_->head().patient_until;
  if (const int64_t before = until.load(); before > nanoseconds(now - pause)) until.store(before + pause.count());
}

double Watch::seconds_since(Clock::time_point then) {
  const auto now = Clock::now();
  beat(now);
  return Seconds(now - then - pauses_.since(then)).count();
}

// How long until the next look.
std::chrono::milliseconds Watch::look_around() {
  for (const int rank : dead()) {
    if (stop_ || has_fault()) break;
    std::unique_lock lock(mutex_);
    const Peer& peer = peers_.at(rank);
    lock.unlock();
    see_death(rank, peer);
  }
  flight_->make_room_for_stacks();
  const auto now = Clock::now();
  beat(now);
  if (const int64_t turn = flight_->head().turn_since.load();
      end_ > 0 && turn != 0 && seconds_since(Clock::time_point(std::chrono::nanoseconds(turn))) > end_ + 5) {
    Seen me = look_at(flight_->head(), flight_->records(), {});
    me.kind = Seen::stuck;
    end_process(in_words(me));
  }
  auto rest = kTick;
  std::string overdue;
  {
    std::lock_guard lock(mutex_);
    for (auto& [number, call] : calls_) {
      const auto counted = now - pauses_.since(call.began);
      const bool ends = call.end <= counted, reports = call.report <= counted;
      if (ends || reports) {
        const auto waited = std::chrono::duration_cast<std::chrono::seconds>(counted - call.began).count();
        const std::string line = "rank " + std::to_string(flight_->head().rank) + " (process " +
                                 std::to_string(getpid()) + ") has been in " + call.what + " for " +
                                 std::to_string(waited) + " s" + missing(call.recorders);
        if (!ends) print(line);
        if (ends && overdue.empty()) overdue = line;
        call.report = Clock::time_point::max();
      }
      const auto left =
          std::chrono::duration_cast<std::chrono::milliseconds>(std::min(call.end, call.report) - counted);
      rest = std::clamp(left, std::chrono::milliseconds(1), rest);
    }
  }
  if (!overdue.empty()) overdue = and_who_is_gone(overdue);
  if (!overdue.empty()) end_process(overdue);
  return rest;
}

// A call of MPI waits for other ranks: if one of them will never come, it is to blame.
std::string Watch::and_who_is_gone(const std::string& line) const {
  std::vector<Seen> gone = look({});
  gone.erase(std::remove_if(gone.begin(), gone.end(), [](const Seen& seen) { return !seen.is_gone(); }), gone.end());
  return gone.empty() ? line : in_words(gone) + "; " + line;
}

// The one that another rank blames, if that is why it has ended.
void Watch::see_death(int rank, const Peer& peer) {
  // Whoever ends a job has the launcher kill all others, in any order: one that was stopped, or asleep, is dead soon after.
  const auto ends = [](const FlightHead& head) { return head.fault != 0; };
  if (const FlightHead* first = first_that(ends); first != nullptr)
    return report(text_of(first->verdict), first != peer.head() && first->failed_at == 0 && speaks());
  if (blames_somebody(*peer.head())) return report(text_of(peer.head()->verdict), false);
  std::string verdict = in_words(look_at(*peer.head(), peer.records(), {}));
  const std::string failure = text_of(peer.head()->failure);
  if (!failure.empty())
    verdict = "rank " + std::to_string(rank) + " (host " + text_of(peer.head()->host) + ", process " +
              std::to_string(peer.head()->pid) + ") was ended by " + failure;
  report(verdict, failure.empty() && speaks());
}

// The rank of this host, beside this one, that was the first of those to make its verdict, or nullptr.
const FlightHead* Watch::first_that(bool (*counts)(const FlightHead& head)) const {
  std::lock_guard lock(mutex_);
  const FlightHead* first = nullptr;
  for (const auto& [rank, peer] : peers_) {
    const FlightHead* head = peer.head();
    if (counts(*head) && (first == nullptr || head->blamed_at < first->blamed_at)) first = head;
  }
  return first;
}

// A rank may hear only that another one, which has found out, has left.
std::string Watch::blamed() const {
  if (blames_somebody(flight_->head())) return verdict();
  const FlightHead* first = first_that(blames_somebody);
  return first == nullptr ? "" : text_of(first->verdict);
}

// One line for a host: the first rank that is alive.
bool Watch::speaks() const {
  std::lock_guard lock(mutex_);
  return std::none_of(peers_.begin(), peers_.end(),
                      [&](const auto& entry) { return entry.first < flight_->head().rank && !entry.second.seen_dead; });
}

// --- the end ---------------------------------------------------------------------------------------------------------

void Watch::report(const std::string& verdict, bool print_it, bool all) {
  flight_->blame(verdict);
  if (flight_->head().fault.exchange(1) == 0 && print_it) print(verdict);
  bring_recorders(all);
}

void Watch::hear(const std::string& verdict, bool is_death) {
  if (is_death) heard_of_death_ = true;
  report(verdict, false);
}

void Watch::bring_recorders(bool all) {
  signals::save();
  if (folder_.empty()) return;
  std::lock_guard lock(mutex_);
  for (const auto& [rank, peer] : peers_) {
    if (!peer.view || !(all || peer.seen_dead)) continue;
    const std::string name = folder_ + "/rank-" + std::to_string(rank) + ".flight";
    if (peer.view->save(name.c_str())) ::unlink(peer.view->path().c_str());
  }
}

void Watch::end_process(const std::string& verdict) {
  report(verdict, true);
  // Where others may go on without this rank, they hear of no other end than by a signal.
  if (goes_on_without_lost_ranks()) ::kill(getpid(), SIGKILL);
  _exit(1);
}

// --- calls without a deadline ----------------------------------------------------------------------------------------

// Those that the launcher has started on this host, and that have not come to init().
std::string Watch::missing(const std::string& recorders) const {
  if (recorders.empty()) return "";
  std::set<int> here{flight_->head().local_rank};
  glob_t found{};
  if (glob(recorders.c_str(), 0, nullptr, &found) == 0)
    for (size_t i = 0; i < found.gl_pathc; ++i) {
      std::string reason;
      if (const auto view = FlightView::open(found.gl_pathv[i], 0, reason)) here.insert(view->head().local_rank);
    }
  globfree(&found);
  std::string absent;
  for (int local = 0; local < flight_->head().local_size; ++local)
    if (here.count(local) == 0) absent += (absent.empty() ? "" : ", ") + std::to_string(local);
  const std::string of_host =
      " of the " + std::to_string(flight_->head().local_size) + " ranks of host " + text_of(flight_->head().host);
  if (absent.empty()) return ": all" + of_host.substr(3) + " have come to init(), so ranks of other hosts are missing";
  return ": local rank " + absent + of_host + " has not come to init()";
}

int Watch::enter(const std::string& what, double report, double seconds, const std::string& recorders) {
  std::lock_guard lock(mutex_);
  const auto in = [now = Clock::now()](double s) {
    return now + std::chrono::duration_cast<Clock::duration>(Seconds(s));
  };
  Call call{-1, what, in(0), in(report), in(seconds), recorders};
  FlightHead& head = flight_->head();
  for (int slot = 0; slot < FlightHead::kCalls && call.slot < 0; ++slot) {
    if (head.calls[slot].since.load() != 0) continue;
    call.slot = slot;
    std::snprintf(head.calls[slot].what, sizeof head.calls[slot].what, "%s", what.c_str());
    head.calls[slot].since.store(nanoseconds(Clock::now()));
  }
  calls_[++next_call_] = std::move(call);
  look_now();
  return next_call_;
}

void Watch::leave(int number) {
  std::lock_guard lock(mutex_);
  const auto call = calls_.find(number);
  if (call == calls_.end()) return;
  if (call->second.slot >= 0) flight_->head().calls[call->second.slot].since.store(0);
  calls_.erase(call);
}

}  // namespace ringdp
