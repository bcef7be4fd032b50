// The engine of a rank: takes submissions, lets the ranks agree on them, and carries them out, turn by turn.
//
// A *turn* looks at everything once and never blocks. Whoever holds the lock `drive_` may take turns: the engine's own
// thread, or a caller who waits for a result and has nothing better to do; a peer cannot tell who it was. The thread
// keeps off while a caller drives. It sleeps when there is nothing to do, but for some looks a second, so that it hears
// which ranks leave.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/options.h"
#include "base/slots.h"
#include "engine/counters.h"
#include "engine/damage.h"
#include "engine/gpu_levels.h"
#include "engine/launch.h"
#include "engine/operation.h"
#include "engine/timeline.h"
#include "guard/alarm.h"
#include "guard/inject.h"
#include "guard/roll_call.h"
#include "guard/watch.h"
#include "shared/bell.h"
#include "submit/submission.h"
#include "world/gpus.h"
#include "world/process_set.h"

namespace ringdp {

class Engine {
 public:
  // `everybody`: process set 0, of all ranks of the job. `generation` is part of every header. `watch`: knows the other ranks
  // of the host; none: this rank looks at nobody.
  Engine(Options options, uint32_t generation, Membership everybody, std::shared_ptr<Watch> watch = nullptr);
  ~Engine();  // as shutdown(), if that was not called
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  const Options& options() const { return options_; }
  const std::shared_ptr<Host>& host() const { return host_; }  // none where nothing is shared
  const Chooser& chooser() const { return chooser_; }          // of algorithms, in process set 0
  bool checks_messages() const { return options_.checksum; }
  const Counters& counters() const { return counters_; }
  Timeline& timeline() { return timeline_; }
  Watch& watch() const { return *watch_; }
  // Whether an all-reduce is cast while it is under way (Submission::wide), if its caller wants that: not what goes along
  // with its name, nor what never leaves a host, where the ranks read each other's tensors.
  bool casts_under_way(int process_set, uint64_t bytes, Dtype dtype);

  // From any thread. Throws for what is wrong on this rank alone; what differs between ranks fails the handle. What is
  // captured in a CUDA graph is done when it returns.
  std::shared_ptr<Handle> submit(Submission submission);

  // The caller is about to look at what it will submit then: where RINGDP_INJECT puts a NaN into that, it is there now.
  bool injects() const { return inject_.any(); }
  void before_look(const Submission& submission);

  // Several of one process set that complete together or not at all: where ranks differ in one of them, all fail. What is
  // wrong with one on this rank alone is thrown, and none is taken. `layout`: see Group.
  std::vector<std::shared_ptr<Handle>> submit_group(std::vector<Submission> submissions,
                                                    const std::string& layout = "");

  // submit() and the beginning of wait(), for a Caller (below) who waits for this alone. Where nothing else is under way
  // and the operation ends with its meeting, it takes the operation itself, and turns for as long as spinning pays: mostly it is done then. No lock is waited for that anybody holds for long, so one may keep Python's.
  std::shared_ptr<Handle> call(Submission&& submission);

  // Who is about to submit something and wait for it says so first: then the thread need not wake up for it.
  class Caller {
   public:
    explicit Caller(Engine& engine) : engine_(engine) { engine_.callers_.fetch_add(1); }
    ~Caller() { engine_.caller_goes(); }
    Caller(const Caller&) = delete;
    Caller& operator=(const Caller&) = delete;

   private:
    Engine& engine_;
  };

  // Waits until the operation is done, and meanwhile takes turns. `look` is called some ten times a second without any
  // lock (it may throw, to end the wait: Ctrl-C). False if the deadline passed first.
  [[nodiscard]] bool wait(Handle& handle, Deadline deadline, const std::function<void()>& look);
  // Until the engine ends it, which it does by its own deadlines. Throws ErrorKind::deadline if it does not.
  void wait_for_end(Handle& handle, const std::function<void()>& look);

  // One step's vote on a plan's lane: the fields are merged by MIN over all ranks.
  std::shared_ptr<Handle> vote(int process_set, int lane, std::vector<uint64_t> fields);

  // Another process set over its own communicators, agreed on by the caller; on its ranks only.
  void add_process_set(int id, Membership membership);

  // False, and nothing is done, where an operation is under way in it. On its ranks, which have agreed that each of them is
  // done with it. Its communicators are the caller's again.
  bool remove_process_set(int id);
  bool is_idle(int process_set);  // nothing is under way in it

  // This rank's number in a process set, and how many ranks it has. Throws ErrorKind::usage where it is none of them.
  struct Place {
    int number, ranks;
  };
  Place place_in(int process_set);

  // Of a bucket that is reduced by halves: the elements that are this rank's own between them.
  Chunk own_chunk(int process_set, uint64_t count, Dtype dtype, bool on_gpu);

  // Leaves: outstanding operations of this rank fail, then the engine goes on answering until all ranks have left or
  // the seconds are over. The thread is joined. False if other ranks were still there. Those that waited for this one are
  // told after how many steps of its optimizer it left.
  bool shutdown(double seconds, uint64_t steps = 0);
  void begin_shutdown(uint64_t steps = 0);  // its first part alone: nothing more is submitted here

  // A turn of whoever takes those of all ranks, in an order of its own (tests), while a Caller keeps the thread off.
  bool take_turn();

  // Ends at once: nobody is told, and MPI is left alone. How many messages MPI has not been done with: while there are any, this
  // engine must live, and so must the tensors that it was given.
  int64_t abandon();

  bool is_broken();  // for good: a process of this host has died, say, and nothing more is accepted

  // Ends the whole job at once.
  void abort(int code);

  // In a forked child the thread does not exist: forget it, and never touch a transport again.
  void forget_after_fork();

 private:
  struct Arrival {  // one thing handed to the engine's thread
    Submission submission;
    std::vector<uint64_t> vote;
    bool is_vote = false;
    std::vector<std::unique_ptr<ProcessSet>> new_sets;
  };

  // How long who drives may sleep when a turn has moved nothing.
  struct Pause {
    enum How { none, spin, yield, sleep } how = none;
    std::chrono::microseconds time{0};
  };

  void main();
  void loop();
  bool turn(Submission* own = nullptr);
  bool look_at_everything(Submission* own);
  void thread_sleeps(std::chrono::microseconds most);
  void work_sleeps(std::chrono::microseconds most);
  void caller_goes();
  bool drive_for(Handle& handle, Clock::time_point until);
  bool drives_alone(const Submission& own);
  std::shared_ptr<Handle> new_handle();
  void leave_off();
  Pause pause(bool moved, bool caller);
  std::unique_ptr<ProcessSet> new_set(int id, Membership membership, Chooser chooser);
  std::vector<std::unique_ptr<ProcessSet>> new_sets(int id, Membership membership, Chooser chooser);
  void keep(std::vector<std::unique_ptr<ProcessSet>> made);
  bool becomes_idle(ProcessSet& set);
  void forget(int process_set);
  void check_open() const;
  const Chooser& known(int process_set) const;
  bool casts_under_way(const Chooser& chooser, uint64_t bytes, Dtype dtype) const;
  void admit(Submission& submission);
  void admit_gpu(const Submission& submission);
  void note_stream(Submission& submission);
  void wait_until_captured(Handle& handle);
  bool take_arrivals();
  void take(Arrival& arrival);
  void take_named(Submission&& submission, ProcessSet& set);
  void take_planned(Submission&& submission, ProcessSet& set);
  void record(const Submission& submission, uint64_t sequence);
  void record_vote(int process_set, int lane, uint64_t number, Handle& handle);
  bool inject(Stage stage, Submission& submission,
              bool by_messages = false);  // true: a bit of what comes is to be flipped
  bool fits_note(const Submission& submission, const ProcessSet& set) const;
  bool ends_with_meeting(const Submission& submission, const ProcessSet& set) const;
  bool tells_places(const Submission& submission, const ProcessSet& set) const;
  void tell(Submission&& submission, ProcessSet& set);
  void begin_vote(ProcessSet& set, int lane_id);
  void merge(const Meetings::Meeting& meeting, std::byte* mine, const std::byte* theirs, bool mine_is_left);
  bool listen(ProcessSet& set);
  void met(ProcessSet& set, Meetings::Meeting& meeting);
  void met_by_others(ProcessSet& set, Meetings::Meeting& meeting);
  static void sum_letters(const Submission& submission, const ProcessSet& set, const Meetings::Meeting& meeting);
  static void take_sum(const Submission& submission, const ProcessSet& set, const Meetings::Meeting& meeting);
  static void check_lengths(const ProcessSet& set, const Meetings::Meeting& meeting);
  static std::vector<uint64_t> merged_words(const ProcessSet& set, Meetings::Meeting& meeting);
  void counted(ProcessSet& set, Meetings::Meeting& meeting);
  void leave(ProcessSet& set);
  void look_for_dead();
  Error with_culprit(const Error& error);
  void finish_telling(Seconds most);
  void start(Submission submission, ProcessSet& set, uint64_t ticket, Describe describe,
             std::vector<Whereabouts> told = {});
  // GPU tensors: gpus.cc, gpu_probe.cc, launches.cc, in_graphs.cc, in_levels.cc.
  bool goes_by_gpu(Submission& submission, ProcessSet& set, uint64_t ticket);
  void ask(ProcessSet& set, Submission submission, const char* what);
  void tell_all(ProcessSet& set, const char* what, const void* bytes, size_t count);
  void look_for_way(ProcessSet& set, Gpu& gpu);
  void tell_card(ProcessSet& set);
  void tell_text(ProcessSet& set, Gpus::Way next, const char* what);
  bool find_way(ProcessSet& set);
  bool give_way_up(ProcessSet& set);
  bool cards_are_here(ProcessSet& set);
  bool make_communicator(ProcessSet& set);
  bool hosts_have_found_ways(ProcessSet& set);
  std::string complaint(ProcessSet& set) const;
  bool all_have_made_it(ProcessSet& set);
  void go_without_nccl(ProcessSet& set);
  void go_through_host(ProcessSet& set);
  TakesGpuMemory mpi_takes_gpu_memory(const ProcessSet& set) const;
  void begin_probe(ProcessSet& set);
  bool look_at_probe(ProcessSet& set);
  bool all_have_probed(ProcessSet& set);
  void begin_check(ProcessSet& set, Gpus::Way found);
  static Submission known_values(const Gpus& gpus, int first);
  bool check_values(ProcessSet& set);
  static std::string wrong_value(const Gpus& gpus, int ranks);
  bool all_have_checked(ProcessSet& set);
  void decide(ProcessSet& set);
  void begin_launch(Submission submission, ProcessSet& set, uint64_t ticket);
  void sizes_are_known(Operation& operation);
  void add_launch(Submission submission, ProcessSet& set, uint64_t ticket, std::vector<uint64_t> rows);
  void propose(uint64_t id, Launch& launch);
  void launch_met(ProcessSet& set, Meetings::Meeting& meeting);
  bool advance_launches();
  std::optional<uint64_t> next_launch() const;
  void launched(uint64_t id, Launch& launch);
  Error not_in_a_graph(const Submission& submission, const ProcessSet& set) const;
  void note_graph(const Launch& launch);
  void watch_graphs();
  std::string replay_text(const CapturedGraph::Replays& replays, uint64_t replay) const;
  std::optional<Error> difference_of_replays(const ProcessSet& set, const CapturedGraph::Replays& replays) const;
  Error cause_of(const Error& error) const;
  void look_at_replays(const ProcessSet& set, CapturedGraph::Replays& replays);
  void end_graphs(const Error& why);
  void fail_launch(uint64_t id, const Error& error);
  void fail_agreed(ProcessSet& set, const Submission& submission, uint64_t ticket, const Error& error);
  std::optional<Error> why_it_ends(ProcessSet& set, const std::string& label, Clock::time_point since);
  void check_failures() const;
  void check_launches();
  void begin_levels(Submission submission, ProcessSet& set, uint64_t ticket);
  void levels_met(uint64_t id, bool agreed, bool have_memory);
  bool advance_levels();
  bool take_steps(TwoLevels& levels, const TwoLevels::HandIn& hand_in);
  void fail_levels(uint64_t id, const Error& error);
  void check_levels();
  void leave_levels();
  void watch_gpus();
  bool waits_for_gpus() const;
  void abort_communicators(const Error& why);
  void tell_of_failure();
  void end_communicators();

  bool advance_operations();
  bool start_waiting();
  void finished(Operation& operation);
  void note_difference(const Submission& submission);
  void fail_group(const Submission& submission, const Error& error);
  void has_failed(ProcessSet& set, int lane_id, uint64_t sequence);
  void break_lanes();
  void break_lane(ProcessSet& set, int lane_id, uint64_t failed);
  void check_votes(ProcessSet& set);
  static void fail_votes(Lane& lane, const Error& error);
  void check_deadlines();
  std::optional<Wait> longest_wait();
  void check_departures();
  void ended(const Submission& submission, ProcessSet& set, uint64_t ticket);
  void release_name(const Submission& submission);
  bool anything_active() const;
  bool anything_waiting() const;
  bool anything_pending() const;
  template <class Act>
  void for_each_not_started(const Act& act) {  // of what this rank has submitted
    agreeing_.for_each([&](uint64_t, Submission& submission) { act(submission); });
    for (auto& [key, queue] : queued_)
      for (Submission& submission : queue) act(submission);
    for (auto& [key, queue] : waiting_)
      for (Start& start : queue) act(start.submission);
  }
  bool everyone_left() const;
  bool stuck() const;
  void break_down(const Error& noticed);
  void take_receives_back();
  void wake();
  ProcessSet& process_set(int id);
  static uint64_t window_of(const Submission& submission, const ProcessSet& set);

  const Options options_;
  const uint32_t generation_;
  const int rank_, size_;
  Transport* abort_through_;
  const Chooser chooser_;

  const std::shared_ptr<Host> host_;
  const std::shared_ptr<Watch> watch_;
  Inject inject_;
  std::atomic<uint64_t> submitted_{0};  // operations, where faults are injected
  const bool crowded_;                  // more ranks on this host than cores: who spins keeps another from working

  std::mutex mutex_;  // guards the next six, and what has_arrivals_ says
  std::condition_variable ended_;
  std::vector<Arrival> arrivals_;
  NamesInFlight in_flight_;        // given by callers; those of unnamed calls are the process set's
  std::map<int, Chooser> known_;   // of the process sets that submissions may name
  std::map<int, int> number_in_;   // of this rank, in those
  std::map<int, int> gpu_of_set_;  // where tensors of theirs lie on one
  std::optional<Error> broken_;    // nothing more is accepted
  bool leaving_ = false;
  uint64_t steps_ = 0;  // taken when it left
  std::atomic<bool> has_arrivals_{false};
  std::atomic<bool> stop_{false}, abandoned_{false};
  std::atomic<int> callers_{0};         // that drive or want to
  std::atomic<bool> work_left_{false};  // when the last one stopped driving
  Bell thread_bell_;                    // the thread sleeps here while nothing is under way, or a caller drives
  Bell own_bell_;                       // where there is no heap with one that peers can ring
  Bell& work_bell_;                     // who waits for other ranks sleeps here

  std::mutex drive_;  // guards all that follows
  std::map<int, std::unique_ptr<ProcessSet>> sets_;
  std::vector<Arrival> taken_;                                    // from arrivals_, while they are looked at
  Slots<Submission> agreeing_;                                    // by token
  std::map<std::pair<int, int>, std::deque<Submission>> queued_;  // unnamed calls whose slot is taken, by process set
  struct Start {
    Submission submission;
    uint64_t ticket;
    Describe describe;
    std::vector<Whereabouts> told;
  };
  std::map<std::pair<int, int>, std::deque<Start>> waiting_;  // by process set and lane: too many in flight
  std::map<std::pair<int, int>, uint64_t> broken_lanes_;      // the first sequence that has failed, just now
  std::list<Operation> active_;
  std::list<Operation> parked_;              // failed with requests open: their memory must stay
  std::map<uint64_t, Launch> launches_;      // that NCCL has not taken yet
  std::map<uint64_t, TwoLevels> in_levels_;  // numbered with these
  uint64_t next_launch_ = 0;
  std::optional<uint64_t> calling_;  // the call is under way
  uint64_t gpu_clock_ = 0;           // see launches.cc
  const Gpu* gpu_of_mpi_ = nullptr;  // in whose context MPI is called, once it has been given memory of a GPU
  struct Running {                   // on the GPU; nobody here waits for it
    std::string label;
    int set;
    Gpu::Point completed;
    Deadline until;
  };
  std::list<Running> running_;
  RollCall roll_call_;
  Alarm alarm_;
  bool left_ = false;
  std::shared_ptr<Handle> last_handle_;  // of call()
  // To read the clock takes as long as a turn: the time of a move is noted after so many turns that moved nothing.
  static constexpr int kStill = 8;
  int still_ = 0;  // turns since anything moved
  Clock::time_point last_move_ = Clock::now(), last_check_ = Clock::now();
  std::chrono::microseconds pause_{0};

  Counters counters_;
  Timeline timeline_;

  std::thread thread_;
};

// What is said to whoever waits for an engine that has ended, or for a rank that has left.
Error closed_error();
Error peer_left(const Submission& submission, ProcessSet& set, int left);

}  // namespace ringdp
