// One exception type for the whole core; the binding turns its kind into a Python class.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace ringdp {

enum class ErrorKind {
  usage,      // the caller asked for something that cannot be: ValueError
  mismatch,   // ranks disagree about an operation: MismatchError
  duplicate,  // a name is already in flight: DuplicateNameError
  deadline,   // nothing arrived in time: DeadlineError
  peer,       // another rank left, failed or sent poison: PeerError
  transport,  // MPI reported an error: TransportError
  checksum,   // a message was damaged on its way: ChecksumError
  gpu,        // CUDA or NCCL did: GpuError
  closed,     // the world was shut down: NotInitializedError
  injected,   // RINGDP_INJECT has asked for it: InjectedError
  internal,   // a bug in ringdp: RingdpError
};

// The class of ringdp.errors that it becomes.
constexpr const char* python_class(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::usage:
      return "UsageError";
    case ErrorKind::mismatch:
      return "MismatchError";
    case ErrorKind::duplicate:
      return "DuplicateNameError";
    case ErrorKind::deadline:
      return "DeadlineError";
    case ErrorKind::peer:
      return "PeerError";
    case ErrorKind::transport:
      return "TransportError";
    case ErrorKind::checksum:
      return "ChecksumError";
    case ErrorKind::gpu:
      return "GpuError";
    case ErrorKind::closed:
      return "NotInitializedError";
    case ErrorKind::injected:
      return "InjectedError";
    case ErrorKind::internal:
      break;
  }
  return "RingdpError";
}

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& what) : std::runtime_error(what), kind_(kind) {}
  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

// fail(ErrorKind::usage, "rank ", r, " is not one of ", n): builds the text and throws.
template <class... Parts>
[[noreturn]] void fail(ErrorKind kind, Parts&&... parts) {
  std::ostringstream text;
  (text << ... << std::forward<Parts>(parts));
  throw Error(kind, text.str());
}

}  // namespace ringdp
