// A transport that holds what it is given, or fails, when a test says so: as MPI does where a rank is lost.
#pragma once

#include <atomic>
#include <memory>
#include <utility>

#include "transport/transport.h"

namespace ringdp::tests {

struct TransportFaults {
  std::atomic<bool> holds{false};  // nothing completes
  std::atomic<bool> fails{false};  // each test throws, and MPI has the request back, and may have given it out again
  std::atomic<int> tests_after{0};
  std::atomic<bool> swallows{false};  // messages longer than a header are never posted
};

class Failing final : public Transport {
 public:
  Failing(std::unique_ptr<Transport> transport, TransportFaults& faults)
      : transport_(std::move(transport)), faults_(faults) {}
  int rank() const override { return transport_->rank(); }
  int size() const override { return transport_->size(); }
  int max_tag() const override { return transport_->max_tag(); }
  Request send(int peer, int tag, const void* data, size_t bytes) override {
    return is_swallowed(bytes) ? kSwallowed : transport_->send(peer, tag, data, bytes);
  }
  Request receive(int peer, int tag, void* data, size_t bytes) override {
    return is_swallowed(bytes) ? kSwallowed : transport_->receive(peer, tag, data, bytes);
  }
  bool test(Request& request, size_t* received) override {
    if (has_failed_) ++faults_.tests_after;
    if (faults_.fails) {
      has_failed_ = true;
      fail(ErrorKind::peer, "another rank is lost");
    }
    return !faults_.holds && request.handle != kSwallowed.handle && transport_->test(request, received);
  }
  int arrived(int tag, size_t* bytes) override { return transport_->arrived(tag, bytes); }
  void cancel(Request& request) override {
    if (request.handle != kSwallowed.handle) transport_->cancel(request);
  }
  [[noreturn]] void abort(int code) override {
    transport_->abort(code);
    fail(ErrorKind::internal, "abort came back");
  }

 private:
  static constexpr Request kSwallowed{UINT64_MAX};
  bool is_swallowed(size_t bytes) const { return faults_.swallows && bytes > 64; }

  const std::unique_ptr<Transport> transport_;
  TransportFaults& faults_;
  bool has_failed_ = false;
};

}  // namespace ringdp::tests
