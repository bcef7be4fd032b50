// The flight recorder: a file in memory in which a rank notes what it is doing, so that it can be read when the rank cannot be
// asked any more.
//
// It is always on. The file lies where the other ranks of the host, and the launcher, can map it; it survives a SIGKILL of
// its owner, as they hold it. Its first page is the *board*: who this is, and how it stands. Then come the last 4,096
// operations, a record each, the oldest overwritten first; and what Python has written of its stacks.
//
// Readers are other processes: they lock nothing, and trust nothing (FlightView). The layout is fixed, little endian;
// ringdp/flight.py reads it, too: change kVersion with any change here.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

#include "base/deadline.h"
#include "engine/stage.h"

namespace ringdp {

// CLOCK_MONOTONIC, nanoseconds: the same for all processes of a host.
inline int64_t nanoseconds(Clock::time_point at) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(at.time_since_epoch()).count();
}

// Of any two numbers: what another process has written may be any.
inline double seconds_between(int64_t from, int64_t to) { return (double(to) - double(from)) * 1e-9; }

// One operation, or a vote.
struct FlightRecord {
  static constexpr uint8_t kVote = 255;    // as a kind
  static constexpr uint8_t kFailed = 255;  // as a stage
  static constexpr size_t kName = 56;      // bytes, the 0 at the end included; longer names are cut

  std::atomic<uint64_t> number;  // from 1, written last; 0: being written
  uint64_t key;                  // digest of the name; of the plan, for its buckets
  uint64_t sequence;             // in its lane; of a vote, how many came before it there
  uint64_t bytes;                // of this rank's input
  int64_t submitted;             // nanoseconds
  std::atomic<int64_t> changed;  // when it came to `stage`
  int64_t step;                  // of this rank's optimizer at its submission: votes so far
  int32_t process_set;
  int16_t lane;                // 0: a named operation
  uint8_t kind;                // OpKind
  std::atomic<uint8_t> stage;  // Stage
  char name[kName];
};
static_assert(sizeof(FlightRecord) == 120, "a reader in another language counts on it");

// How a rank stands with the job.
enum class Standing : uint32_t { starting, running, leaving, ended };

// A call that cannot be given a deadline, under way (guard/watch.h).
struct FlightCall {
  std::atomic<int64_t> since;  // nanoseconds; 0: none
  char what[56];
};

struct FlightHead {
  static constexpr uint64_t kMagic = 0x3154'4c46'5044'4952;  // "RIDPFLT1"
  static constexpr uint32_t kVersion = 1;
  static constexpr uint32_t kRecords = 4096;
  static constexpr int kCalls = 8;

  uint64_t magic;
  uint32_t version, head_bytes, record_bytes, records;
  uint64_t token;  // random: whoever reads it in a mapping has mapped this very file

  // Who this is.
  int32_t rank, size, local_rank, local_size;
  int32_t pid, stack_signal;  // what makes the process write its Python stacks; 0: nothing does
  uint64_t born;              // of the process, in the kernel's ticks: a number may be given again
  uint64_t pid_space;         // the process namespace in which `pid` is this process; 0: not known
  int64_t wall_offset;        // nanoseconds from this host's clock to that of the calendar
  uint32_t generation, unused;
  char host[64], job[64];

  // How it stands.
  alignas(64) std::atomic<Standing> standing;
  std::atomic<uint64_t> submitted;     // records so far
  std::atomic<int64_t> step;           // votes of optimizers so far
  std::atomic<int64_t> turn_since;     // nanoseconds: the engine is in a turn; 0: it is not
  std::atomic<int64_t> patient_until;  // nanoseconds: its user has said that others may have to wait for it
  FlightCall calls[kCalls];

  // How it came to its end.
  alignas(64) std::atomic<int32_t> signal;  // that ended it; 0: none
  int32_t signal_code;
  uint64_t signal_address;
  std::atomic<int64_t> failed_at;  // nanoseconds; 0: nothing has failed
  std::atomic<int64_t> blamed_at;  // when the verdict was made
  std::atomic<uint32_t> fault;     // 1: the job ends by it
  std::atomic<uint32_t> recovers;  // 1: it is about to go on without those that are lost
  char failure[512];               // the exception that ended it, or what it blames another rank for
  char verdict[1024];              // who is to blame, as far as this rank knows: "rank 2 (…) …"
};
static_assert(sizeof(FlightHead) <= 4096);

// Another rank's file, or one that was found. Whatever is in it, reading is safe.
class FlightView {
 public:
  // nullptr, with the reason, where it is no such file. token 0: any.
  static std::unique_ptr<FlightView> open(const std::string& path, uint64_t token, std::string& reason);
  ~FlightView();
  FlightView(const FlightView&) = delete;
  FlightView& operator=(const FlightView&) = delete;

  const FlightHead& head() const { return *static_cast<const FlightHead*>(memory_); }
  const FlightRecord& record(uint64_t number) const;  // where that one was, if it is not overwritten
  const std::string& path() const { return path_; }
  bool save(const char* path) const;  // as it is now: see save_flight()

  static constexpr size_t kHead = 4096, kStacksAt = kHead + FlightHead::kRecords * sizeof(FlightRecord);
  static constexpr size_t kStacks = 64 << 10, kBytes = kStacksAt + kStacks;

 private:
  FlightView(void* memory, std::string path) : memory_(memory), path_(std::move(path)) {}
  void* const memory_;
  const std::string path_;
};

// This rank's.
class Flight {
 public:
  struct Owner {
    int rank = 0, size = 1, local_rank = 0, local_size = 1;
    std::string job;
  };

  // `path`: of the file, which must not be there yet; "": none, only this process reads it. Throws ErrorKind::transport where
  // there is no room for it.
  Flight(const std::string& path, const Owner& owner);
  ~Flight();
  Flight(const Flight&) = delete;
  Flight& operator=(const Flight&) = delete;

  FlightHead& head() const { return *static_cast<FlightHead*>(memory_); }
  const FlightRecord* records() const { return &record(1); }
  const std::string& path() const { return path_; }
  void unlink();

  // Where this process writes its stacks, one after the other; -1: nowhere.
  int stacks() const { return fd_; }
  void make_room_for_stacks();  // now and then: the oldest go

  struct Entry {
    uint8_t kind;
    int process_set, lane;
    uint64_t key, sequence, bytes;
    const char* name;
    size_t length;
    Clock::time_point made;
  };
  // From any thread. Its number, by which it is told what comes next; by whoever takes the engine's turns.
  uint64_t begin(const Entry& entry, Stage stage);
  void enter(uint64_t number, Stage stage) { change(number, static_cast<uint8_t>(stage)); }
  void failed(uint64_t number) { change(number, FlightRecord::kFailed); }

  void blame(const std::string& verdict);      // the last one stays, but for that of a fault
  void failed_by(const std::string& failure);  // the first one stays
  void place(const Owner& owner);              // who this is, once that is known
  void stepped() { head().step.fetch_add(1, std::memory_order_relaxed); }
  void turn_begins() { head().turn_since.store(nanoseconds(recently()), std::memory_order_relaxed); }
  void turn_ends() { head().turn_since.store(0, std::memory_order_relaxed); }

 private:
  FlightRecord& record(uint64_t number) const {
    auto* first = reinterpret_cast<FlightRecord*>(static_cast<std::byte*>(memory_) + FlightView::kHead);
    return first[(number - 1) % FlightHead::kRecords];
  }
  void change(uint64_t number, uint8_t stage);

  void* memory_ = nullptr;
  std::string path_;
  int fd_ = -1;
};

// A copy in a file, which is there all of a sudden and whole, or not at all; another process's copy of the same is as good.
// Signal handlers call it: it takes no lock and no memory.
bool save_flight(const void* memory, const char* path);

// Text that another process may be writing.
template <size_t room>
std::string text_of(const char (&text)[room]) {
  return std::string(text, strnlen(text, room));
}

// Whether it has made its verdict just now: one that its user has got over counts no more.
bool blames_somebody(const FlightHead& head);

// The Python stacks in a recorder.
inline const char* stacks_of(const FlightHead& head) {
  return reinterpret_cast<const char*>(&head) + FlightView::kStacksAt;
}

// The kernel's word on a process: its state, and when it began, in ticks. State 0: there is none.
struct ProcessState {
  char state = 0;
  uint64_t born = 0;
};
ProcessState state_of_process(int pid);
uint64_t pid_space();  // of this process

}  // namespace ringdp
