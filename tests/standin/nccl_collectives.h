// The collectives of the stand-in for libnccl: the bytes really go from rank to rank.
#pragma once

#include <string>

#include "nccl_communicator.h"

namespace standin {

enum Kind { allreduce_kind, reduce_kind, scatter_kind, gather_kind, broadcast_kind };
const char* name_of(Kind kind);
constexpr int kPremultiplied = 5;  // the operation of a Call: whichever number it has on a rank

// Addresses on the GPU.
struct Buffers {
  const void* from;
  void* to;
};

// Misuse: they are not in its memory, or overlap otherwise than NCCL allows.
void check(const Comm& c, const Call& call, const Buffers& buffers);

// In the stream. Misuse: another rank does something else.
void carry_out(Comm& c, const Call& call, const Buffers& buffers);

}  // namespace standin
