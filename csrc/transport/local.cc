#include "transport/local.h"

#include <algorithm>
#include <deque>
#include <map>
#include <mutex>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "agree/digest.h"
#include "base/error.h"
#include "kernels/copy.h"

namespace ringdp {

namespace {

constexpr int kMaxTag = 4095;  // few, so that tests come around them

// As MPI, which takes what is short at once: who has sent it may go before it is received.
constexpr size_t kShort = 64;  // bytes

struct Message {
  bool is_send;
  void* data;  // const for a send; never written then
  size_t bytes;
  bool done = false;  // for who has posted it
  bool matched = false;
  bool forgotten = false;  // by who has posted it
  bool too_long = false;
  int not_yet = 0;                   // test() answers "not yet" so often first
  std::vector<std::byte> copy = {};  // of a send that was taken at once
};

}  // namespace

class LocalHub {
 public:
  LocalHub(int size, uint64_t seed, OnTheWay on_the_way)
      : size_(size), seed_(seed), on_the_way_(std::move(on_the_way)) {}
  int size() const { return size_; }

  uint64_t post(int from, int to, int tag, Message message) {
    std::lock_guard lock(mutex_);
    check();
    auto& [waiting, posted] = channels_[{from, to, tag}];
    message.not_yet = delay(from, to, tag, message.is_send, posted[message.is_send]++);
    const uint64_t id = ++last_;
    auto& entry = messages_.emplace(id, message).first->second;
    if (!waiting.empty() && messages_.at(waiting.front()).is_send != entry.is_send) {
      match(from, to, messages_.at(waiting.front()), entry);
      if (messages_.at(waiting.front()).forgotten) messages_.erase(waiting.front());
      waiting.pop_front();
    } else {
      waiting.push_back(id);
      if (message.is_send && message.bytes <= kShort) take(entry);
    }
    return id;
  }

  bool test(uint64_t id, size_t* received) {
    std::lock_guard lock(mutex_);
    check();
    auto it = messages_.find(id);
    if (!it->second.done || it->second.not_yet-- > 0) return false;
    const bool too_long = it->second.too_long;
    if (received) *received = it->second.bytes;
    if (it->second.matched)
      messages_.erase(it);
    else
      it->second.forgotten = true;
    if (too_long) fail(ErrorKind::transport, "a message was longer than its receive");
    return true;
  }

  int arrived(int to, int tag, size_t* bytes) {
    std::lock_guard lock(mutex_);
    check();
    for (int from = 0; from < size_; ++from) {
      const auto channel = channels_.find({from, to, tag});
      if (channel == channels_.end() || channel->second.waiting.empty()) continue;
      const Message& first = messages_.at(channel->second.waiting.front());
      if (!first.is_send) continue;
      *bytes = first.bytes;
      return from;
    }
    return -1;
  }

  void cancel(uint64_t id) {
    std::lock_guard lock(mutex_);
    messages_.erase(id);
    for (auto& [ends, channel] : channels_) {
      auto& waiting = channel.waiting;
      waiting.erase(std::remove(waiting.begin(), waiting.end(), id), waiting.end());
    }
  }

  // A rank that goes takes along what it has posted and nobody has matched, as its memory goes too; not what was taken.
  void withdraw(int rank) {
    std::lock_guard lock(mutex_);
    for (auto& [ends, channel] : channels_) {
      auto& waiting = channel.waiting;
      if (waiting.empty()) continue;
      const bool sends = messages_.at(waiting.front()).is_send;  // a channel holds messages of one side only
      if ((sends ? std::get<0>(ends) : std::get<1>(ends)) != rank) continue;
      std::deque<uint64_t> left;
      for (const uint64_t id : waiting) {
        Message& message = messages_.at(id);
        const bool taken = message.is_send && message.bytes <= kShort;
        if (taken) message.forgotten = true, left.push_back(id);
        if (!taken) messages_.erase(id);
      }
      waiting = std::move(left);
    }
  }

  void abort(int code) {
    std::lock_guard lock(mutex_);
    aborted_ = code == 0 ? 1 : code;
  }

 private:
  struct Channel {
    std::deque<uint64_t> waiting;
    uint64_t posted[2] = {0, 0};  // receives, sends
  };

  // By the place of a message in its channel, and not by when it was posted: so ranks whose turns are taken in the same
  // order see the same again.
  int delay(int from, int to, int tag, bool is_send, uint64_t number) const {
    if (seed_ == 0) return 0;
    const uint64_t channel = uint64_t(from) << 48 | uint64_t(to) << 32 | uint64_t(tag) << 1 | uint64_t{is_send};
    return static_cast<int>(Digest().add(seed_).add(channel).add(number).value() % 8);
  }

  static void take(Message& send) {
    const auto* bytes = static_cast<const std::byte*>(send.data);
    if (send.bytes > 0) send.copy.assign(bytes, bytes + send.bytes);
    send.data = send.copy.data();
    send.done = true;
  }

  void match(int from, int to, Message& a, Message& b) const {
    Message& send = a.is_send ? a : b;
    Message& receive = a.is_send ? b : a;
    receive.too_long = send.bytes > receive.bytes;
    if (!receive.too_long) {
      kernels::copy(receive.data, send.data, send.bytes);
      if (on_the_way_) on_the_way_(from, to, static_cast<std::byte*>(receive.data), send.bytes);
      receive.bytes = send.bytes;
    }
    send.done = receive.done = send.matched = receive.matched = true;
  }

  void check() const {
    if (aborted_) fail(ErrorKind::peer, "another rank has aborted the job with exit code ", aborted_);
  }

  const int size_;
  std::mutex mutex_;
  uint64_t last_ = 0;
  std::unordered_map<uint64_t, Message> messages_;
  std::map<std::tuple<int, int, int>, Channel> channels_;  // by sender, receiver, tag
  const uint64_t seed_;
  const OnTheWay on_the_way_;
  int aborted_ = 0;
};

namespace {

class LocalTransport final : public Transport {
 public:
  LocalTransport(std::shared_ptr<LocalHub> hub, int rank) : hub_(std::move(hub)), rank_(rank) {}
  ~LocalTransport() override { hub_->withdraw(rank_); }
  int rank() const override { return rank_; }
  int size() const override { return hub_->size(); }
  int max_tag() const override { return kMaxTag; }

  Request send(int peer, int tag, const void* data, size_t bytes) override {
    return {hub_->post(rank_, peer, tag, Message{true, const_cast<void*>(data), bytes})};
  }
  Request receive(int peer, int tag, void* data, size_t bytes) override {
    return {hub_->post(peer, rank_, tag, Message{false, data, bytes})};
  }
  bool test(Request& request, size_t* received) override {
    if (!hub_->test(request.handle, received)) return false;
    request = {};
    return true;
  }
  int arrived(int tag, size_t* bytes) override { return hub_->arrived(rank_, tag, bytes); }
  void cancel(Request& request) override {
    hub_->cancel(request.handle);
    request = {};
  }
  [[noreturn]] void abort(int code) override {
    hub_->abort(code);
    fail(ErrorKind::peer, "this rank aborted the job with exit code ", code);
  }

 private:
  std::shared_ptr<LocalHub> hub_;
  int rank_;
};

}  // namespace

std::shared_ptr<LocalHub> make_local_hub(int size, uint64_t delay_seed, OnTheWay on_the_way) {
  return std::make_shared<LocalHub>(size, delay_seed, std::move(on_the_way));
}

std::unique_ptr<Transport> make_local_transport(std::shared_ptr<LocalHub> hub, int rank) {
  return std::make_unique<LocalTransport>(std::move(hub), rank);
}

}  // namespace ringdp
