#include "transport/local.h"

#include <deque>
#include <map>
#include <mutex>
#include <random>
#include <tuple>
#include <unordered_map>

#include "base/error.h"
#include "kernels/copy.h"

namespace ringdp {

namespace {

constexpr int kMaxTag = 4095;  // few, so that tests come around them

struct Message {
  bool is_send;
  void* data;  // const for a send; never written then
  size_t bytes;
  bool done = false;  // for who has posted it
  bool matched = false;
  bool forgotten = false;  // by who has posted it
  bool too_long = false;
  int not_yet = 0;  // test() answers "not yet" so often first
};

}  // namespace

class LocalHub {
 public:
  LocalHub(int size, uint64_t seed) : size_(size), random_(seed), delays_(seed != 0) {}
  int size() const { return size_; }

  uint64_t post(int from, int to, int tag, Message message) {
    std::lock_guard lock(mutex_);
    check();
    if (delays_) message.not_yet = static_cast<int>(random_() % 8);
    const uint64_t id = ++last_;
    auto& entry = messages_.emplace(id, message).first->second;
    auto& waiting = channels_[{from, to, tag}];
    if (!waiting.empty() && messages_.at(waiting.front()).is_send != entry.is_send) {
      match(messages_.at(waiting.front()), entry);
      if (messages_.at(waiting.front()).forgotten) messages_.erase(waiting.front());
      waiting.pop_front();
    } else {
      waiting.push_back(id);
      entry.done = message.is_send && message.bytes == 0;  // as MPI, which sends what is short at once
    }
    return id;
  }

  bool test(uint64_t id, size_t* received) {
    std::lock_guard lock(mutex_);
    check();
    auto it = messages_.find(id);
    if (!it->second.done || it->second.not_yet-- > 0) return false;
    const Message message = it->second;
    if (message.matched)
      messages_.erase(it);
    else
      it->second.forgotten = true;
    if (message.too_long) fail(ErrorKind::transport, "a message was longer than its receive");
    if (received) *received = message.bytes;
    return true;
  }

  void cancel(uint64_t id) {
    std::lock_guard lock(mutex_);
    messages_.erase(id);
    for (auto& [channel, waiting] : channels_)
      for (auto it = waiting.begin(); it != waiting.end();) it = *it == id ? waiting.erase(it) : it + 1;
  }

  // A rank that goes takes along what it has posted and nobody has matched: its memory goes too.
  void withdraw(int rank) {
    std::lock_guard lock(mutex_);
    for (auto& [channel, waiting] : channels_) {
      if (waiting.empty()) continue;
      const bool sends = messages_.at(waiting.front()).is_send;  // a channel holds messages of one side only
      if ((sends ? std::get<0>(channel) : std::get<1>(channel)) != rank) continue;
      for (const uint64_t id : waiting) messages_.erase(id);
      waiting.clear();
    }
  }

  void abort(int code) {
    std::lock_guard lock(mutex_);
    aborted_ = code == 0 ? 1 : code;
  }

 private:
  static void match(Message& a, Message& b) {
    Message& send = a.is_send ? a : b;
    Message& receive = a.is_send ? b : a;
    receive.too_long = send.bytes > receive.bytes;
    if (!receive.too_long) {
      kernels::copy(receive.data, send.data, send.bytes);
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
  std::map<std::tuple<int, int, int>, std::deque<uint64_t>> channels_;
  std::minstd_rand random_;
  const bool delays_;
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

std::shared_ptr<LocalHub> make_local_hub(int size, uint64_t delay_seed) {
  return std::make_shared<LocalHub>(size, delay_seed);
}

std::unique_ptr<Transport> make_local_transport(std::shared_ptr<LocalHub> hub, int rank) {
  return std::make_unique<LocalTransport>(std::move(hub), rank);
}

}  // namespace ringdp
