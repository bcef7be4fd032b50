// Device memory of the stand-in: one reserved range of addresses that nobody may touch, and the same pages once more, where
// the stand-in itself and its kernels find them.
#pragma once

#include <cstddef>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "device/cuda.h"
#include "misuse.h"

namespace standin {

using ringdp::cuda::Address;

class Memory {
 public:
  static Memory& instance();

  Address allocate(int device, size_t bytes);  // 0: the device has no more
  void free(Address at);
  int device_of(Address at);  // -1: it is no device memory
  // Misuse unless it lies in one allocation, of the device where one is given.
  std::byte* reach(Address at, size_t bytes, const char* who, int device = -1);
  void check_gaps();  // misuse: something was written behind an allocation
  size_t used(int device);
  long live();
  static size_t limit();  // bytes of a device

 private:
  struct Block {
    int device;
    size_t bytes;
  };
  Memory();
  void check_gap(Address at, size_t bytes);
  std::byte* alias(Address at);

  std::mutex mutex_;
  std::map<Address, Block> blocks_;
  std::map<size_t, std::vector<Address>> spare_;  // by bytes
  std::map<int, size_t> used_;
  Address next_ = 0, end_ = 0;
};

}  // namespace standin
