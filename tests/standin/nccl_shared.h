// What the ranks of a communicator of the stand-in share: a file in memory, of which nothing is left however its processes
// end. The unique id is its name in the process that made it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "device/cuda.h"

namespace standin {

constexpr int kMostRanks = 8;
constexpr size_t kSlot = 64 << 10, kChannel = 16 << 10;  // bytes

// What a rank is about to do: all must be about to do the same, but for factors, which each multiplies by itself.
struct Call {
  int kind = 0, type = 0, operation = 0, root = 0;
  uint64_t count = 0;
  uint64_t factor = 0;  // its bytes, in the type
  bool operator==(const Call& o) const {
    return kind == o.kind && type == o.type && operation == o.operation && root == o.root && count == o.count;
  }
};

struct Channel {  // from one rank to another
  std::atomic<uint64_t> written, read;
  std::byte bytes[kChannel];
};

struct SharedFile {
  std::atomic<int> opened;
  std::atomic<int> arrived;
  std::atomic<int> round;
  std::atomic<int> taken[kMostRanks];
  int ranks[kMostRanks];  // how many there are, as each was told
  ringdp::cuda::Uuid uuids[kMostRanks];
  Call calls[kMostRanks];
  Channel channels[kMostRanks][kMostRanks];
  std::byte slots[kMostRanks][kSlot];
};

std::string make_file();                         // its name
SharedFile* open_file(const std::string& name);  // nullptr: there is none
void all_have_opened(const std::string& name);
void close_file(SharedFile* file);

}  // namespace standin
