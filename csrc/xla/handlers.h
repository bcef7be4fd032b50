// What compiled programs of XLA call on the CPU: the collective operations, one handler each. A program holds nothing of
// ours but a process set's number, the operation's name and its options: the engine is looked up when it runs
// (engine/current.h). Each call returns when its operation is done, with the result or with an error of XLA's that begins
// with the class of ours: "ringdp.MismatchError: rank 1: …".
//
// XLA's memory is read once and written once, and never given to the engine: what an operation that was given up may still
// be sent from, or received into, must not be freed, and XLA would free it.
#pragma once

#include "xla/ffi.h"

namespace ringdp::xla {

// attributes of all: name (text), process_set, rank, ranks (integers: what the program was compiled for, or -1)
Handler allreduce;      // op, prescale, postscale, layout (text: of many tensors, a line for each; "" for one alone)
Handler allgather;      // rows (of each rank, for one tensor after another), layout
Handler broadcast;      // root (its number in the set), layout
Handler alltoall;       // splits (rows for each rank), received (rows from each rank: the second result has them, too)
Handler reducescatter;  // op, prescale, postscale, layout
Handler barrier;

struct Target {
  const char* name;
  Handler* handler;
};
inline constexpr Target kTargets[] = {
    {"ringdp_allreduce", allreduce}, {"ringdp_allgather", allgather},         {"ringdp_broadcast", broadcast},
    {"ringdp_alltoall", alltoall},   {"ringdp_reducescatter", reducescatter}, {"ringdp_barrier", barrier},
};

}  // namespace ringdp::xla
