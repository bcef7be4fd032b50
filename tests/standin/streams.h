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

namespace standin {

class Stream {
 public:
  using Work = std::function<void()>;
  Stream();
  ~Stream();  // when all it was given is done
  void push(Work work);
  void synchronize();
  bool idle();

 private:
  void main();
  void delay();

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
  void record(Stream& stream);
  void hold_up(Stream& stream);
  bool passed();
  void synchronize();
  double seconds();  // when it passed, on some clock

 private:
  Point now();
  std::mutex mutex_;
  Point point_;
};

}  // namespace standin
