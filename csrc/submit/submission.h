// What a caller hands in: one operation on one tensor (pointer, count, dtype), by name or as a bucket of a plan.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "base/wide.h"
#include "collectives/schedule.h"
#include "device/captured_graph.h"
#include "device/gpu.h"
#include "submit/handle.h"

namespace ringdp {

enum class OpKind : uint8_t { allreduce, reducescatter, broadcast, allgather, alltoall, barrier, open_plan, join };
inline constexpr int kOpKinds = 8;

// More than any memory has: what another rank tells of its sizes must stay below it, so that sums of bytes do not overflow.
inline constexpr uint64_t kMostBytes = uint64_t{1} << 50;

constexpr const char* name_of(OpKind kind) {
  constexpr const char* names[kOpKinds] = {"allreduce", "reducescatter", "broadcast", "allgather",
                                           "alltoall",  "barrier",       "open_plan", "join"};
  return names[static_cast<int>(kind)];
}

struct Group;

// When it came to a stage; the zero of the clock for one that it has not come to, or that nobody wanted to know.
struct Stamps {
  Clock::time_point submit, agree, reduce;
};

// Where tensors on a GPU lie, and when they may be read and written.
struct OnGpu {
  Gpu& gpu;
  uint64_t stream = 0;  // the caller's: they are ready when it has come as far as
  Gpu::Point ready;     // which submit() records
  // All-gather and all-to-all ask the caller for an output of so many rows, once they are known (from any thread).
  std::function<void*(uint64_t rows)> allocate;
};

struct Submission {
  OpKind kind = OpKind::allreduce;
  std::string name;  // "" for an unnamed call: it gets one by its number in its process set
  uint64_t key = 0;  // digest of the name, from Engine::submit() on
  uint64_t nth = 0;  // operations that this rank had submitted before, where somebody counts: guard/inject.h
  int slot = -1;     // of an unnamed call
  int member = 0;    // which one of its group
  int process_set = 0;

  // The tensor. `shape` is what the ranks compare; for all-gather and all-to-all its first entry may differ. The memory
  // is the caller's and must live until the handle is done. input may equal output (in place). All-gather and
  // all-to-all bring their own output, unless what comes has just as many bytes as there is room at `output`.
  const void* input = nullptr;
  void* output = nullptr;
  uint64_t room = 0;
  Dtype dtype = Dtype::float32;
  std::vector<uint64_t> shape;
  // All-reduce in place: the tensor above, of 16-bit floats, is only what travels of this one. Nothing that the ranks
  // compare depends on it, as a rank may as well cast by itself; so they need not do the same.
  Wide wide;

  bool on_gpu = false;           // the tensors are; the same on all ranks, or the operation fails
  bool by_nccl = false;          // that is settled; of all-gather and all-to-all, the rows still go through host memory
  bool by_mpi = false;           // likewise: from GPU to GPU
  std::shared_ptr<OnGpu> place;  // where; none on a rank that has joined
  bool in_graph = false;         // it is captured in a CUDA graph, whose replays will do it
  std::shared_ptr<CapturedGraph> graph;  // that one; none on a rank that has joined
  uint64_t graph_number = 0;             // if this is not its first exchange in the process set

  ReduceOp op = ReduceOp::sum;
  double prescale = 1, postscale = 1;
  int divides_by = 0;  // an average that is a step of one among so many ranks; 0: the process set's
  int root = -1;
  std::vector<uint64_t> splits;  // all-to-all: rows for each rank
  std::string text;              // open_plan: the plan as text, a line a parameter, compared between ranks

  uint32_t era = 0;                // in which it was submitted: see agree/meetings.h
  bool awaits_joined = false;      // ranks that have joined submit it, too; else they take part without a tensor
  bool absent = false;             // of this rank, which has joined: it only has the key
  bool divides_by_active = false;  // join: what is averaged meanwhile is divided by the number of the other ranks

  // A bucket of a plan (lane >= 0): exchanged at once, without agreement; every rank submits the same buckets in order.
  int lane = -1;
  uint32_t bucket = 0;
  uint64_t plan_digest = 0;
  Half half = Half::both;  // of its all-reduce

  std::shared_ptr<const Group> group;  // of which it is one; none: it stands alone
  std::shared_ptr<Handle> handle;
  Stamps came;  // see engine/timeline.h

  std::string bucket_name() const;  // "bucket 3 of plan 2"
  std::string label() const;        // that, or "allreduce 'x'"
  uint64_t count() const;           // elements
  uint64_t row_count() const;       // elements of one row of the first dimension
  bool first_may_differ() const { return kind == OpKind::allgather || kind == OpKind::alltoall; }
  uint64_t signature() const;                          // digest of everything that must be equal on all ranks
  std::string encoded() const;                         // all that a rank needs to know that has not submitted it
  static Submission decoded(const std::string& text);  // throws for what no rank can have encoded
  std::string description() const;  // the same in words: "allreduce float32[3, 4] Average, prescale 1, postscale 1"
};

// Submissions that complete together or not at all. So the signature of each is one of all.
struct Group {
  uint64_t signature = 0;
  std::vector<Submission> members;  // for what is said of them
  std::string layout;               // of what lies in them: a line for each of the caller's tensors, said first
};
std::shared_ptr<const Group> group_of(const std::vector<Submission>& submissions, const std::string& layout = "");

// Throws ErrorKind::usage for what can be seen without asking other ranks.
void validate(const Submission& submission, int rank, int size);

}  // namespace ringdp
