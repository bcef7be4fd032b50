// The executor: carries out one rank's schedule over a transport, as a state machine that never blocks.
//
// Many runs advance side by side; each call of progress() does what can be done now, at most a few segments of
// arithmetic, and returns. On each channel (a peer to send to, or to receive from) the order is
//
//     header · segment · segment · … · [empty message: poison]
//
// No data is received from a peer before its header was compared, and no data is sent before *all* incoming headers
// were compared. Poison, an empty message in place of data, says that the sender will send nothing more: the run failed
// there. A run that fails, for a wrong header or for poison, sends poison itself and goes on *draining*: it receives
// and throws away what its neighbours still send, until they have sent poison too. So all ranks of a ring fail, no
// message is left behind, and the channels can be used for the next operation. In shared memory a mark in the count of
// progress is the poison: whoever has set it touches the others' memory no more, and a run that has failed ends when all
// have set it.
//
// Where the header says so, segments are checked (collectives/checksums.h). One that was damaged does not end the run: it
// would be found too late by those who have ended it before. The run goes on as if nothing was, and says so when it is done.
#pragma once

#include <array>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <queue>
#include <string>
#include <vector>

#include "agree/header.h"
#include "collectives/checksums.h"
#include "collectives/elements.h"
#include "collectives/pieces.h"
#include "collectives/schedule.h"
#include "shared/counts.h"
#include "transport/transport.h"

namespace ringdp {

struct Memory {
  const void* input = nullptr;
  void* output = nullptr;
  // Of memory that the CPU must not touch, how a copy is asked for; nobody waits until it is done. Then the schedule
  // sends, receives and copies, no more, and no move waits for a copy.
  std::function<void(void* to, const void* from, size_t bytes)> copy = nullptr;
};

// What the ranks of a host have mapped of each other for one operation: outputs, areas, and counts of progress (signals),
// which go on from a base. No mates: nothing is shared.
struct Shared {
  struct Mate {
    int rank = 0;
    std::byte *output = nullptr, *area = nullptr;  // nullptr: not shared
    Counts::Line* counts = nullptr;
    Counts::Values base{};
  };
  std::vector<Mate> mates;     // in order, this rank included
  size_t me = 0;               // its place among them
  std::function<void()> ring;  // wakes those who may sleep

  const Mate& of_rank(int rank) const;
};

// Who exchanges headers, and so hears of a failure: those that the schedule sends data between, and besides
enum class Neighbours {
  of_schedule,
  ring,    // each rank and the next: a rank with 0 elements among others with more must be found out too
  mutual,  // both ways where data go one way: who sends must hear that the other has no memory for it
  all,     // each with each: where one gives up, all do, and none is left alone with the next part of the operation
};

class Run {
 public:
  // longest_message: no message of this operation, from any rank, is longer (bytes): what draining must be ready for.
  // partners: who exchange headers with this rank besides, both ways; given for all-reduces only.
  // pieces: of the schedule, where what is reduced lies elsewhere; then it runs in place, and no other rank reads or writes
  // the output.
  Run(Schedule schedule, Memory memory, Elements elements, const Header& header, int tag, size_t longest_message,
      Neighbours neighbours, const std::vector<int>& partners, Transport& transport, Shared shared = {},
      std::unique_ptr<Pieces> pieces = nullptr);
  ~Run();
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  // Does what can be done now; true if anything was. Throws only for transport errors, after which the run must be kept
  // (its requests own memory) but not used.
  bool progress();
  bool done() const { return finished_; }
  const std::string& error() const { return error_; }  // after done(): "" or why it failed
  bool checks() const { return checks_; }
  const Damage& damage() const { return damage_; }  // after done(): the first that this rank has found

  // A fault on purpose: a bit of the first segment that comes, on its way.
  void flip_what_comes() { flips_ = true; }

  // This rank knows that it deviates: the others must not use its data.
  void poison(const std::string& why);

  // Takes receives back that nothing will match (after a deadline). Sends that are not complete stay the transport's.
  void abandon();

 private:
  struct Outgoing {
    int peer = 0;
    std::vector<int32_t> moves;  // sends, in order, and kChecksums
    size_t next = 0;             // the first not posted
    std::deque<std::pair<int32_t, Request>> posted;
    std::optional<Checksums> checksums;  // where they are checked
  };
  struct Incoming {
    int peer = 0;
    std::vector<int32_t> moves;  // receives, in order, and kChecksums
    size_t next = 0, completed = 0;
    std::deque<std::pair<int32_t, Request>> posted;
    Header header;
    Request header_request;
    std::optional<Checksums> checksums;
    bool closed = false;                 // nothing more will come from it
    std::unique_ptr<std::byte[]> spare;  // where drained messages go
  };

  void find_channels(Neighbours neighbours, const std::vector<int>& partners);
  template <class Channel>
  void add_checksums(Channel& channel);
  void link_moves();
  void start();
  bool take_headers();
  bool complete_receives();
  void received(Incoming& in, int32_t move);
  void compare_checksums(Incoming& in);
  size_t length_of(const Incoming& in, int32_t move) const;
  void post_receive(Incoming& in);
  size_t post_send(Outgoing& out);
  bool complete_sends();
  bool take_tokens();
  bool all_stopped() const;
  bool compute();
  uint64_t compute_one();
  bool post();
  bool drain();
  bool drain_channel(Incoming& in);
  void fail_with(const std::string& why);
  void completed(int32_t move);
  void execute(const Move& move);
  std::byte* at(const Region& region);
  uint64_t element_of(int32_t receive) const;
  bool here(int32_t move) const { return move == kChecksums || !pieces_ || pieces_->here(schedule_.moves[move]); }
  bool may_compute() const { return !ready_.empty() && here(ready_.top()); }
  bool may_take_out() const { return pieces_ && pieces_->any_out(); }
  size_t bytes_of(const Move& move) const { return move.count * size_of(elements_.dtype); }
  bool starts_by_itself(int32_t move) const {  // when nothing holds it up: not a message, nor what waits for others
    const Kind kind = schedule_.moves[move].kind;
    return !is_message(kind) && kind != Kind::await;
  }
  void check_finished();

  static constexpr int32_t kChecksums = -1;           // in place of a move: a message with those of the last segments
  static constexpr int kInFlight = 16;                // messages posted per channel and direction
  static constexpr uint64_t kComputeBytes = 1 << 20;  // arithmetic per progress()
  static constexpr uint64_t kStopped = uint64_t{1} << 63;  // in the count of line 0: this rank has given up

  const Schedule schedule_;
  const Memory memory_;
  const Elements elements_;
  Header header_;
  const int tag_;
  const bool checks_;
  const size_t longest_message_;
  // No rank can complete without the data of every other: who has failed hears poison from each neighbour.
  const bool all_fail_together_;
  Transport& transport_;
  const Shared shared_;
  const std::unique_ptr<Pieces> pieces_;

  std::unique_ptr<std::byte[]> scratch_;
  std::vector<int32_t> waiting_for_;                   // per move: how many of its `after` are not done
  std::vector<int32_t> first_dependent_, dependents_;  // per move: who waits for it (compressed rows)
  struct Awaits {
    std::vector<int32_t> moves;  // in order
    size_t next = 0;
  };
  std::array<Awaits, Move::kLines> awaits_;
  // Arithmetic moves and signals that may start, the earliest of the list first: later ones must not hold up what is to be sent
  // soon.
  std::priority_queue<int32_t, std::vector<int32_t>, std::greater<>> ready_;
  std::vector<Outgoing> outgoing_;
  std::vector<Incoming> incoming_;
  size_t remaining_;
  int headers_missing_ = 0;
  bool flips_ = false;
  int checksums_missing_ = 0;  // messages with them: not posted, or not received
  Damage damage_;
  bool started_ = false, draining_ = false, finished_ = false;
  std::string error_;
};

}  // namespace ringdp
