#include "memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "kernel.h"

ptrdiff_t standin_alias = 0;
uint64_t standin_device_memory = 0, standin_device_bytes = 0;

namespace standin {

namespace {

constexpr size_t kReserved = size_t{64} << 30;  // addresses, not memory
constexpr size_t kAlignment = 256;
constexpr int kPoison = 0xCD, kFreed = 0xDE, kGap = 0xA5;

const char* setting(const char* name) {
  const char* text = std::getenv(name);
  return text != nullptr && *text != '\0' ? text : nullptr;
}

// The host finds memory at the addresses of a device that is not the device's: what it writes there is lost.
bool is_elsewhere() {
  const char* open = setting("RINGDP_STANDIN_OPEN");
  return open != nullptr && std::strcmp(open, "elsewhere") == 0;
}

size_t rounded(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }
size_t gap(size_t bytes) { return rounded(bytes) + kAlignment - bytes; }  // behind an allocation of so many

bool all_are(const std::byte* bytes, size_t count, int value) {
  return count == 0 || (bytes[0] == static_cast<std::byte>(value) && std::memcmp(bytes, bytes + 1, count - 1) == 0);
}

}  // namespace

Memory& Memory::instance() {
  static auto& memory = *new Memory;
  return memory;
}

Memory::Memory() {
  const int file = memfd_create("standin-device-memory", MFD_CLOEXEC);
  if (file < 0 || ftruncate(file, kReserved) != 0) misuse("no memory for devices");
  const int access = setting("RINGDP_STANDIN_OPEN") ? PROT_READ | PROT_WRITE : PROT_NONE;
  void* device = mmap(nullptr, kReserved, access, MAP_SHARED | MAP_NORESERVE, file, 0);
  if (is_elsewhere())
    device = mmap(device, kReserved, access, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  void* alias = mmap(nullptr, kReserved, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
  if (device == MAP_FAILED || alias == MAP_FAILED) misuse("no addresses for devices");
  close(file);
  standin_alias = static_cast<std::byte*>(alias) - static_cast<std::byte*>(device);
  next_ = standin_device_memory = reinterpret_cast<Address>(device);
  standin_device_bytes = kReserved;
  end_ = next_ + kReserved;
}

size_t Memory::limit() {
  const char* text = setting("RINGDP_STANDIN_MEMORY");
  return text ? std::strtoull(text, nullptr, 10) : size_t{1} << 30;
}

std::byte* Memory::alias(Address at) { return reinterpret_cast<std::byte*>(at) + standin_alias; }

Address Memory::allocate(int device, size_t bytes) {
  const size_t whole = rounded(bytes);
  std::lock_guard lock(mutex_);
  if (used_[device] + whole > limit()) return 0;
  Address at = next_;
  if (std::vector<Address>& spare = spare_[whole]; !spare.empty()) {
    at = spare.back();
    spare.pop_back();
    if (!all_are(alias(at), whole, kFreed)) misuse("device memory was written after it had been freed");
  } else {
    next_ += whole + kAlignment;  // a gap, so that what runs out of an allocation is in none
    if (next_ > end_) return 0;
  }
  blocks_[at] = {device, bytes};
  used_[device] += whole;
  std::memset(alias(at), kPoison, bytes);
  std::memset(alias(at) + bytes, kGap, gap(bytes));
  return at;
}

void Memory::free(Address at) {
  std::lock_guard lock(mutex_);
  const auto block = blocks_.find(at);
  if (block == blocks_.end()) misuse("cuMemFree of an address that was not allocated, or was freed before");
  const size_t whole = rounded(block->second.bytes);
  check_gap(at, block->second.bytes);
  std::memset(alias(at), kFreed, whole);
  used_[block->second.device] -= whole;
  spare_[whole].push_back(at);
  blocks_.erase(block);
}

void Memory::check_gap(Address at, size_t bytes) {
  if (!all_are(alias(at) + bytes, gap(bytes), kGap)) misuse("something was written behind an allocation");
}

void Memory::check_gaps() {
  std::lock_guard lock(mutex_);
  for (const auto& [at, block] : blocks_) check_gap(at, block.bytes);
}

int Memory::device_of(Address at) {
  std::lock_guard lock(mutex_);
  auto block = blocks_.upper_bound(at);
  if (block == blocks_.begin()) return -1;
  --block;
  return at < block->first + block->second.bytes ? block->second.device : -1;
}

std::byte* Memory::reach(Address at, size_t bytes, const char* who, int device) {
  if (bytes == 0) return alias(at);
  const std::string call = who;
  std::lock_guard lock(mutex_);
  auto block = blocks_.upper_bound(at);
  if (block == blocks_.begin() || at >= (--block)->first + block->second.bytes)
    misuse(call + ": no device memory, or it has been freed");
  if (at + bytes > block->first + block->second.bytes) misuse(call + ": it runs out of an allocation");
  if (device >= 0 && device != block->second.device) misuse(call + ": memory of another GPU");
  return alias(at);
}

size_t Memory::used(int device) {
  std::lock_guard lock(mutex_);
  return used_[device];
}

long Memory::live() {
  std::lock_guard lock(mutex_);
  return static_cast<long>(blocks_.size());
}

}  // namespace standin
