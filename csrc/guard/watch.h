// The watch of a process: sees its neighbours die while nobody asks, and ends calls that nobody else can end.
//
// A thread of its own, as the engine's may hang in a call of MPI's, and the program's in anything. It sleeps on the
// processes of the ranks of this host (pidfd), so it knows of a death within a millisecond, and costs nothing meanwhile.
// What it sees it writes into this rank's flight recorder, as the *verdict*.
//
// After a fault the survivors bring the recorders of all ranks of the host into the report's folder and take their names
// away: nothing stays behind where the memory was.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "guard/flight.h"
#include "guard/pauses.h"
#include "guard/survey.h"

namespace ringdp {

class Watch {
 public:
  // No thread before start().
  explicit Watch(std::shared_ptr<Flight> flight);
  ~Watch();
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  // The thread. `end`: seconds after which a turn of the engine that does not end, ends the process.
  void start(double end);
  // Who this is, and where reports go: a folder that is made when there is one. From now on signals are handled.
  void place(const Flight::Owner& owner, const std::string& folder);
  void close();  // the rank has left: no file stays, but a report

  Flight& flight() const { return *flight_; }

  // The ranks of this host whose recorders this process can read, itself left out. The reason where it cannot.
  std::string attach(int rank, const std::string& path, uint64_t token);
  void attach(int rank, std::shared_ptr<Flight> of_a_thread);
  // By rank of the job: a number that ranks have in common which read each other's recorders, and the host's name.
  void set_places(std::vector<int> groups, std::vector<std::string> hosts);
  const std::vector<int>& groups() const { return groups_; }
  int group_of(int rank) const { return groups_[static_cast<size_t>(rank)]; }
  bool is_neighbour(int rank) const;           // this rank reads its recorder
  bool sees_all() const { return sees_all_; }  // all ranks of the job are neighbours
  bool has_neighbours(int rank) const;         // is not alone on its host
  const std::string& host_of(int rank) const { return hosts_[static_cast<size_t>(rank)]; }
  Seen unreachable(int rank) const;  // of another host, from which nothing comes

  // All of this host's, by rank. Takes some microseconds for each.
  std::vector<Seen> look(const Question& question) const;
  Seen look_at_one(int rank, const Question& question) const;
  const FlightHead* head_of(int rank) const;

  // Ranks of this host whose process has ended, and not in peace; and whether there are any, which costs nothing to ask.
  std::vector<int> dead();
  bool anybody_is_dead() const { return anybody_is_dead_.load(std::memory_order_relaxed); }

  // Of this host's other ranks, for who goes on without some of them (ringdp/recovery.py).
  struct Neighbour {
    int rank = -1, pid = 0;
    bool is_dead = false;        // surely: its process is gone
    bool can_be_killed = false;  // it is known by more than its number, which may be another's by now
    bool is_stopped = false;
    bool recovers = false;  // it is about to go on, too
    double patience = 0;    // seconds for which its user wants it to be waited for
  };
  std::vector<Neighbour> neighbours();
  // SIGKILL; whether the process was gone within so many seconds.
  bool kill(int rank, double seconds);

  // In a forked child there is no thread, and the memory is the parent's.
  void forget_after_fork();

  // Something has failed: as verdict, and the recorders into the folder: this rank's and those of the dead; or of all, where
  // all are about to end. By any thread, more than once.
  void report(const std::string& verdict, bool print, bool all = false);
  // The verdict of another host's survivors, on a death there, or on an exception.
  void hear(const std::string& verdict, bool is_death);
  bool heard_of_death() const { return heard_of_death_.load(); }
  bool has_fault() const { return flight_->head().fault.load() != 0; }
  std::string verdict() const { return text_of(flight_->head().verdict); }
  // Whom this rank blames just now, or else the one that another rank of this host has blamed first; nothing: nobody.
  std::string blamed() const;

  // Seconds that have passed since, without those in which this process did not run. By any thread.
  double seconds_since(Clock::time_point then);
  // When it was continued last; long ago, if it never was.
  Clock::time_point continued() const { return pauses_.last_end(); }

  // A call that cannot be given a deadline begins: after `report` seconds a line says which, after `seconds` the process ends
  // with it. What it gives ends the watch over it. `recorders`: a pattern of the names of the recorders of all ranks of this host, where they may not
  // know each other yet: the line says which local ranks have none.
  int enter(const std::string& what, double report, double seconds, const std::string& recorders);
  void leave(int call);

 private:
  struct Peer {
    std::unique_ptr<FlightView> view;
    std::shared_ptr<Flight> thread;
    int pidfd = -1;
    bool seen_dead = false;
    const FlightHead* head() const { return view ? &view->head() : thread ? &thread->head() : nullptr; }
    const FlightRecord* records() const { return view ? &view->record(1) : thread->records(); }
  };
  struct Call {
    int slot = -1;
    std::string what;
    Clock::time_point began, report, end;
    std::string recorders;
  };

  static bool is_gone(const Peer& peer);
  void main();
  void look_now();
  void beat(Clock::time_point now);
  std::chrono::milliseconds look_around();
  void see_death(int rank, const Peer& peer);
  const FlightHead* first_that(bool (*counts)(const FlightHead& head)) const;
  std::string and_who_is_gone(const std::string& line) const;
  bool speaks() const;
  void bring_recorders(bool all);
  std::string missing(const std::string& recorders) const;
  [[noreturn]] void end_process(const std::string& verdict);

  const std::shared_ptr<Flight> flight_;
  Pauses pauses_;
  std::string folder_;
  std::vector<int> groups_;  // these by rank of the job
  std::vector<std::string> hosts_;
  bool sees_all_ = true;
  mutable std::mutex mutex_;  // guards the next three
  std::map<int, Peer> peers_;
  std::map<int, Call> calls_;
  bool closed_ = false;
  int next_call_ = 0;
  double end_ = 0;
  int wake_ = -1;  // eventfd
  std::atomic<bool> stop_{false}, anybody_is_dead_{false}, heard_of_death_{false};
  std::thread thread_;
};

}  // namespace ringdp
