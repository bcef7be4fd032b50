#include "streams.h"

#include "captures.h"

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <map>
#include <utility>

namespace standin {

namespace {

long setting(const char* name, long otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr && *text != '\0' ? std::strtol(text, nullptr, 10) : otherwise;
}

std::atomic<unsigned> streams_made{0};

}  // namespace

class Passing {
 public:
  void pass() {
    {
      std::lock_guard lock(mutex_);
      passed_ = true;
      at_ = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    }
    changed_.notify_all();
  }
  void wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return passed_; });
  }
  bool passed() {
    std::lock_guard lock(mutex_);
    return passed_;
  }
  double at() {
    std::lock_guard lock(mutex_);
    return at_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool passed_ = false;
  double at_ = 0;
};

// --- streams ---------------------------------------------------------------------------------------------------------

namespace {

// Of a device: its legacy default stream and those that block with it. What they are given comes in one order.
struct Blocking {
  std::mutex mutex;
  Stream* legacy = nullptr;
  std::set<Stream*> others;
};

Blocking& blocking_of(int device) {
  static std::mutex mutex;
  static auto& all = *new std::map<int, Blocking>;
  std::lock_guard lock(mutex);
  return all[device];
}

}  // namespace

Stream::Stream(int device, Order order)
    : device_(device),
      order_(order),
      random_(static_cast<unsigned>(setting("RINGDP_STANDIN_SEED", 1)) * 7919u + streams_made++),
      thread_([this] { main(); }) {
  if (order == Order::none) return;
  Blocking& all = blocking_of(device);
  std::lock_guard lock(all.mutex);
  if (order == Order::legacy)
    all.legacy = this;
  else
    all.others.insert(this);
}

Stream::~Stream() {
  if (order_ != Order::none) {
    Blocking& all = blocking_of(device_);
    std::lock_guard lock(all.mutex);
    if (all.legacy == this) all.legacy = nullptr;
    all.others.erase(this);
  }
  {
    std::lock_guard lock(mutex_);
    ends_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Stream::push(Work work) {
  push_mark([work = std::move(work)] {
    if (!is_stopped()) work();
  });
}

void Stream::push_mark(Work work) {
  if (order_ == Order::none) return enqueue(std::move(work));
  Blocking& all = blocking_of(device_);
  std::lock_guard lock(all.mutex);
  if (order_ == Order::blocking && all.legacy != nullptr) come_after(*all.legacy);
  if (order_ == Order::legacy)
    for (Stream* other : all.others) come_after(*other);
  enqueue(std::move(work));
}

void Stream::come_after(Stream& other) {
  const auto point = std::make_shared<Passing>();
  other.enqueue([point] { point->pass(); });
  enqueue([point] { point->wait(); });
}

void Stream::enqueue(Work work) {
  {
    std::lock_guard lock(mutex_);
    queue_.push_back(std::move(work));
  }
  changed_.notify_all();
}

void Stream::main() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return !queue_.empty() || ends_; });
    if (queue_.empty()) return;
    Work work = std::move(queue_.front());
    queue_.pop_front();
    busy_ = true;
    lock.unlock();
    delay();
    work();
    work = nullptr;
    lock.lock();
    busy_ = false;
    changed_.notify_all();
  }
}

// Often none, so that streams overtake each other.
void Stream::delay() {
  static const long most = setting("RINGDP_STANDIN_DELAY_US", 0);
  if (most <= 0 || random_() % 2 == 0) return;
  std::this_thread::sleep_for(std::chrono::microseconds(random_() % static_cast<unsigned>(most + 1)));
}

void Stream::synchronize() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return queue_.empty() && !busy_; });
}

bool Stream::idle() {
  std::lock_guard lock(mutex_);
  return queue_.empty() && !busy_;
}

// --- events ---------------------------------------------------------------------------------------------------------

Event::Point Event::now() {
  std::lock_guard lock(mutex_);
  return point_;
}

Result Event::record(Stream& stream) {
  std::lock_guard capturing(capture_mutex());
  if (const Result refused = refusal(stream); refused != ringdp::cuda::kSuccess) return refused;
  std::lock_guard lock(mutex_);
  captured_ = stream.capture;
  point_ = captured_ ? nullptr : std::make_shared<Passing>();
  if (captured_)
    nodes_ = captured_->last(stream);
  else
    stream.push_mark([point = point_] { point->pass(); });
  return ringdp::cuda::kSuccess;
}

// An event that was never recorded holds nothing up.
Result Event::hold_up(Stream& stream) {
  std::lock_guard capturing(capture_mutex());
  if (const Result refused = refusal(stream); refused != ringdp::cuda::kSuccess) return refused;
  std::lock_guard lock(mutex_);
  if (captured_) return captured_->join(stream, nodes_);
  if (point_ && stream.capture) {
    stream.capture->is_invalid = true;
    return kCaptureIsolation;
  }
  if (point_) stream.push_mark([point = point_] { point->wait(); });
  return ringdp::cuda::kSuccess;
}

bool Event::asking_disturbs() {
  std::lock_guard capturing(capture_mutex());
  std::lock_guard lock(mutex_);
  if (captured_) captured_->is_invalid = true;
  return captured_ != nullptr;
}

bool Event::passed() {
  const Point point = now();
  return !point || point->passed();
}

void Event::synchronize() {
  if (const Point point = now()) point->wait();
}

Event::Point new_point() { return std::make_shared<Passing>(); }
void pass(const Event::Point& point) { point->pass(); }
void wait_for(const Event::Point& point) { point->wait(); }

namespace {
std::atomic<bool> stopped{false};
}
void stop_all() { stopped = true; }
bool is_stopped() { return stopped; }

double Event::seconds() {
  const Point point = now();
  return point ? point->at() : 0;
}

}  // namespace standin
