// Streams of the stand-in: each a thread that does what it is given in order, and takes a random time over it.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <thread>

#include "device/cuda.h"

namespace standin {

using ringdp::cuda::Result;

// How a stream stands to the legacy default stream of its device: it is that one; what is given to either waits for what
// the other one was given before; it has nothing to do with it.
enum class Order { legacy, blocking, none };

class Stream {
 public:
  using Work = std::function<void()>;
  Stream(int device, Order order);
  ~Stream();                  // when all it was given is done
  void push(Work work);       // left out where a kernel has stopped the device
  void push_mark(Work work);  // of what orders streams: done in any case
  void synchronize();
  bool idle();
  int device() const { return device_; }
  Order order() const { return order_; }

  std::shared_ptr<class Capture> capture;  // of which it is a part: captures.h

 private:
  void main();
  void delay();
  void enqueue(Work work);
  void come_after(Stream& other);

  const int device_;
  const Order order_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Work> queue_;
  bool busy_ = false, ends_ = false;
  std::mt19937 random_;
  std::thread thread_;
};

// A point that streams pass. Recording it again makes another one: who waits for the first waits for that.
class Event {
 public:
  using Point = std::shared_ptr<class Passing>;
  explicit Event(int device) : device_(device) {}
  // CUDA's answers.
  [[nodiscard]] Result record(Stream& stream);
  [[nodiscard]] Result hold_up(Stream& stream);
  // It is a point in a graph, which passes again and again or never. Who asks whether it has passed spoils the capture.
  bool asking_disturbs();
  bool passed();
  void synchronize();
  double seconds();  // when it passed, on some clock
  int device() const { return device_; }

 private:
  const int device_;
  Point now();
  std::mutex mutex_;
  Point point_;
  std::shared_ptr<class Capture> captured_;
  std::set<size_t> nodes_;  // of the capture, before it
};

Event::Point new_point();
void pass(const Event::Point& point);
void wait_for(const Event::Point& point);

// A kernel has stopped all that this process does on GPUs.
void stop_all();
bool is_stopped();

}  // namespace standin
