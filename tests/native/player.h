// One rank of a scenario: submits what its script says, and knows how each task has ended.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "scenario.h"

namespace ringdp::tests {

// A caller's tensor: in its own memory, or in the heap that the ranks of its host share.
class Tensor {
 public:
  Tensor() = default;
  Tensor(size_t bytes, std::shared_ptr<Host> host);
  Tensor(Tensor&& other) noexcept { *this = std::move(other); }
  Tensor& operator=(Tensor&& other) noexcept;
  ~Tensor();

  std::byte* data() { return block_ != nullptr ? static_cast<std::byte*>(block_) : own_.data(); }
  void fill(const std::vector<std::byte>& bytes);  // its beginning
  std::vector<std::byte> beginning(size_t bytes);

 private:
  std::vector<std::byte> own_;
  std::shared_ptr<Host> host_;
  void* block_ = nullptr;
};

struct Outcome {
  enum How {
    absent,
    open,
    right,
    wrong,
    touched,
    failed
  } how = absent;  // touched: it failed, and its output was written
  ErrorKind kind = ErrorKind::internal;
  std::string text;
};

class Player {
 public:
  Player(const Scenario& scenario, int rank, Engine& engine)
      : scenario_(scenario), rank_(rank), engine_(engine), parts_(scenario.tasks.size()) {}

  bool next();  // takes the next action; false where it has to wait first, or there is none
  bool is_over() const { return next_ == script().size() && all_done(); }
  bool all_done() const;
  bool has_left() const { return left_; }
  void play(Deadline deadline);  // all of them, as a thread that waits
  Outcome outcome(int task);

 private:
  struct Part {  // of this rank in a task
    std::shared_ptr<Handle> handle;
    std::string refused;  // it was not taken
    Tensor input, output, wide;
    bool in_place = false, is_wide = false;
  };

  const std::vector<Action>& script() const { return scenario_.scripts[static_cast<size_t>(rank_)]; }
  const Task& task(int index) const { return scenario_.tasks[static_cast<size_t>(index)]; }
  Part& part(int index) { return parts_[static_cast<size_t>(index)]; }
  void submit(const std::vector<int>& tasks);
  Submission submission(int index);
  void place(int index, Submission& s);
  void differ(int index, Submission& s) const;
  int lane();
  size_t bytes_of_output(int index) const;
  std::vector<std::byte> right(int index);
  std::vector<std::byte> found(int index);

  const Scenario& scenario_;
  const int rank_;
  Engine& engine_;
  std::vector<Part> parts_;  // by task
  size_t next_ = 0;
  bool left_ = false;
};

}  // namespace ringdp::tests
