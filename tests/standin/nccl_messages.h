// Sends and receives of the stand-in for libnccl.
#pragma once

#include <vector>

#include "nccl_communicator.h"

namespace standin {

struct Message {
  bool is_send;
  int peer;
  cuda::Address data;
  uint64_t bytes;
  DataType type;
};

// Misuse: they are not in the GPU's memory, or what one receives is what another one uses.
void check(const Comm& c, const std::vector<Message>& messages);

// In the stream, all of a group side by side; those of two ranks in their order. A send has ended when it was received.
// Misuse: it is longer or shorter than its receive, or of another type.
void carry_out(Comm& c, const std::vector<Message>& messages);

}  // namespace standin
