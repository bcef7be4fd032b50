// Faults on purpose: RINGDP_INJECT says which rank does what to itself, and when. For tests, and for drills of one's own jobs.
//
//     rank=1,step=7,stage=REDUCE,do=kill        several, with ; between them
//
// Where: rank, step (votes of optimizers so far), op (operations submitted so far), name (of the operation), stage (SUBMIT in
// the caller's thread, before it is handed over; AGREE and REDUCE by whoever takes the engine's turns; DONE when its result
// is known). What is left out is any. Each happens once, but for `slow`.
//
// `nan` at SUBMIT of a bucket of gradients strikes before this rank looks whether they are finite, as a broken step would.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/stage.h"
#include "submit/submission.h"

namespace ringdp {

class Inject {
 public:
  // Throws ErrorKind::usage for what cannot be understood.
  Inject(const std::string& text, int rank);

  bool any() const { return !faults_.empty(); }

  // This rank comes to a stage of an operation. May not return, or throw (ErrorKind::injected), or change the tensor.
  // by_messages: at REDUCE, that they bring what is reduced; then `flip` means the first of them that comes to this rank, and
  // true is returned for the caller to do it.
  bool at(Stage stage, const Submission& submission, uint64_t op, int64_t step, bool by_messages = false);
  // It is about to look at what it will submit: a NaN that is to strike then is there now.
  void before_look(const Submission& submission, uint64_t op, int64_t step);

 private:
  enum class Do { kill, stop, segv, raise, sleep, spin, exit, flip, nan, slow };
  struct Fault {
    int rank = -1;
    int64_t step = -1, op = -1;
    std::string name;
    Stage stage = Stage::submit;
    Do what = Do::kill;
    double seconds = 0;
    std::shared_ptr<std::atomic<bool>> done = std::make_shared<std::atomic<bool>>(false);
  };

  static bool strikes(const Fault& fault, Stage stage, const Submission& submission, uint64_t op, int64_t step);
  static Fault parse(const std::string& text);
  static void carry_out(const Fault& fault, const Submission& submission);

  std::vector<Fault> faults_;  // of this rank
};

}  // namespace ringdp
