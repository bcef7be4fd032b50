// One operation from agreement to completion: builds the schedules its kind needs and runs them one after another.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/options.h"
#include "collectives/casts.h"
#include "collectives/run.h"
#include "engine/counters.h"
#include "engine/cut.h"
#include "engine/direct.h"
#include "engine/staged.h"
#include "engine/whereabouts.h"
#include "submit/submission.h"
#include "world/process_set.h"

namespace ringdp {

// What is done to the elements of a reduction over so many ranks.
Elements elements_of(const Submission& submission, int ranks);

// Why the ranks tell each other first what the operation is: they mean different things, and it fails with a table of them;
// or some rank has joined, and takes part in what the others have submitted.
enum class Describe { no, difference, to_joined };
// What this rank tells then.
std::string description_of(const Submission& submission, Describe describe);

class Operation {
 public:
  // `told`: what the ranks of the host have told of their memory already, by member.
  // `ticket`: for a bucket, its place in the lane.
  Operation(Submission submission, ProcessSet& set, uint64_t ticket, uint32_t generation, const Options& options,
            Describe describe, std::vector<Whereabouts> told, Counters& counters);

  bool progress();  // true if anything was done
  bool done() const { return done_; }
  bool failed() const { return error_.has_value(); }
  const Error& error() const { return *error_; }
  void deliver();  // after done(): hands result or error to whoever waits
  int lane() const { return lane_; }
  int process_set() const { return set_.id; }
  uint64_t sequence() const { return Tickets::sequence_of(ticket_); }
  // Else whoever it waits for rings this rank's bell, which a GPU does not.
  bool waits_for_messages() const { return (run_ && (!by_bell_ || staged_)) || awaited_; }
  Clock::time_point began() const { return began_at_; }
  Clock::time_point last_move() const { return last_move_; }

  void flip_what_comes() { flips_ = true; }  // on purpose: guard/inject.h

  // After its deadline, or when the engine must stop.
  void give_up(const Error& error);
  const Submission& submission() const { return submission_; }
  // Of one that NCCL goes on with: done() when the rows of all ranks are known.
  Submission take_submission() { return std::move(submission_); }
  const std::vector<uint64_t>& rows() const { return result_.rows; }
  std::string label() const { return submission_.label(); }

 private:
  using Next = void (Operation::*)();

  void begin();
  void start();
  Algorithm choose() const;
  bool describes() const { return describe_ != Describe::no; }
  void run_finished();
  void run_sizes();
  void check_sizes() const;
  void run_variable_data();
  std::string no_output() const;
  void start_run(Schedule schedule, Memory memory, Elements elements, uint32_t part, Shared shared = {});
  void poison(const std::string& why);
  void finish();
  Elements elements() const { return elements_of(submission_, divisor_); }
  std::unique_ptr<Pieces> pieces_of(const Schedule& schedule) const;
  Schedule fixed_schedule(const Elements& elements) const;
  bool all_choose_the_same() const;
  const AlgorithmRow& row() const;
  Pipeline pipeline_of(Algorithm algorithm) const;
  std::vector<int> partners() const;
  Neighbours neighbours() const;
  Header header(const Elements& elements, uint32_t part, bool checks) const;
  Pipeline pipeline(uint64_t chunk_elements, Dtype dtype) const {
    return cut_for_messages(chunk_elements, dtype, options_);
  }
  uint64_t row_count() const;

  // In shared memory: in_host.cc.
  bool uses_shared_memory() const;
  void meet();
  void met();
  void refuse(const std::string& why);
  void run_in_host();
  void leave_memory();
  Shared shared() const;
  Schedule in_host_schedule(InHost way, Arithmetic arithmetic) const;

  // When what was sent carries checksums: damage.cc.
  void ask_for_damage();
  void hear_of_damage();

  // adasum_exchange.cc
  void begin_adasum();
  void begin_adasum_level(int level);
  void end_adasum_level();

  // When the ranks have told what they mean: described.cc.
  std::vector<std::string> descriptions() const;
  std::string disagreement(const std::vector<std::string>& descriptions) const;
  void described();
  bool take_part(const std::string& encoded);

  // Of tensors on a GPU: by_mpi.cc.
  void wait_for(Gpu::Point point, Next next);
  bool arrive();
  void begin_direct();
  void start_direct();
  void gather_direct();
  void start_direct_rows();
  void run_direct_rows();
  void direct_run_finished();
  Pipeline direct_pipeline(uint64_t chunk_elements) const;

  Submission submission_;
  ProcessSet& set_;
  const uint64_t ticket_;
  const uint32_t generation_;
  const Options& options_;
  Describe describe_;  // no: from now on it is carried out
  Counters& counters_;
  const std::string description_;
  const int lane_;
  const Clock::time_point began_at_ = Clock::now();
  Clock::time_point last_move_ = Clock::now();
  std::unique_ptr<Run> run_;
  std::unique_ptr<Staged> staged_;  // of tensors on a GPU that go through host memory
  std::unique_ptr<Direct> direct_;  // that MPI takes from there
  bool reduced_ = false;            // the own chunk, by kernels
  Gpu::Point awaited_;              // on the GPU: next_ comes when it has passed
  Next next_ = nullptr;
  // All ranks choose the same for an operation: they have agreed on its bytes and dtype, by its signature or its plan.
  Algorithm chosen_;
  int divisor_;                           // of averages
  uint32_t part_ = 0;                     // of the first run
  int adasum_level_ = -1;                 // the exchange that is on
  std::vector<std::byte> theirs_;         // what it brings
  std::unique_ptr<std::byte[]> scratch_;  // of a rank that has joined: its input and output
  // In a host: where all find each other's memory, by member, and the meeting in which they tell it.
  std::vector<Whereabouts> told_;
  Meetings::Meeting* meeting_ = nullptr;
  bool flips_ = false;                         // in the run that comes next
  Meetings::Meeting* damage_ = nullptr;        // the run is over here, and perhaps not yet on all ranks
  std::string refusal_;                        // why this rank cannot
  std::vector<int64_t> my_sizes_, all_sizes_;  // rows, of every rank (all-gather) or from every rank (all-to-all)
  bool by_bell_ = false;                       // the run that is on
  bool sizes_known_ = false, begun_ = false, done_ = false;
  std::optional<Error> error_;
  Result result_;
};

}  // namespace ringdp
