// What every transport offers: first-in first-out channels between the ranks of one process set.
//
// A channel is (sender, receiver, tag). The messages of a channel are matched in the order in which they were posted on
// either side. Nothing here blocks: posting returns at once, test() tells whether a request is complete.
// A transport is used by one thread, the engine's. Adding one: implement these functions, and run the rank suite over
// it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace ringdp {

// Whether a transport sends from memory of GPUs and receives into it, as far as it says itself.
enum class TakesGpuMemory : int8_t { no, yes, unknown };

struct Request {
  uint64_t handle = 0;  // the transport's own; 0: none
  bool pending() const { return handle != 0; }
};

class Transport {
 public:
  virtual ~Transport() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual int max_tag() const = 0;

  // What moves bytes by the CPU does not.
  virtual TakesGpuMemory takes_gpu_memory() const { return TakesGpuMemory::no; }

  // What users are told of a rank: its number in the job, which is another one in a process set of fewer ranks.
  int name_of(int rank) const { return names_.empty() ? rank : names_[static_cast<size_t>(rank)]; }
  void call_ranks(std::vector<int> names) { names_ = std::move(names); }

  // The memory stays untouched (send) or owned by the transport (receive) until test() has returned true.
  [[nodiscard]] virtual Request send(int peer, int tag, const void* data, size_t bytes) = 0;
  [[nodiscard]] virtual Request receive(int peer, int tag, void* data, size_t bytes) = 0;

  // True once complete; the request is then empty and *received (if wanted) is the length of the message received. A
  // message may be shorter than its receive (an empty one is poison, see collectives/run.h); a longer one is an Error. A
  // request for which it has thrown must not be tested again; its memory stays in the transport's hands.
  [[nodiscard]] virtual bool test(Request&, size_t* received = nullptr) = 0;

  // Of a message with this tag that nobody has posted a receive for: who has sent it, and its length; -1: there is none. For
  // tags on which anybody may send.
  [[nodiscard]] virtual int arrived(int tag, size_t* bytes) = 0;

  // A rank that the transport says is gone, where a call has failed; -1: it knows of none.
  virtual int lost() { return -1; }

  // Takes back a receive that nothing will match. Afterwards the request is empty and its memory is the caller's again.
  virtual void cancel(Request&) = 0;

  // A rank of it has died, or has told all others to leave it, as far as the transport has heard: nothing is to be sent by it.
  virtual bool is_revoked() const { return false; }

  // Requests that are neither complete nor taken back: what they send or receive stays in the transport's hands.
  virtual int64_t pending() const { return 0; }

  // Ends all processes of the job (local: marks the job as aborted, so that every rank's next call fails).
  [[noreturn]] virtual void abort(int code) = 0;

 private:
  std::vector<int> names_;  // by rank
};

}  // namespace ringdp
