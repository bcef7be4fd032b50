// What is right and what is not when a target has had an input; and no memory beyond what an input may ask for.
#include <atomic>
#include <cstdlib>
#include <new>

#include "fuzz.h"

namespace ringdp::fuzz {

namespace {

constexpr size_t kMost = size_t{1} << 30;  // bytes at a time
std::atomic<size_t> refused_memory{0};

}  // namespace

const Target& target_of(const std::string& name) {
  for (const Target& target : all_targets())
    if (name == target.name) return target;
  fail(ErrorKind::usage, "there is no target ", name);
}

bool feed(const Target& target, const std::string& input) {
  refused_memory = 0;
  bool refused = false;
  try {
    target.run(input);
  } catch (const Error&) {
    refused = true;
  }
  if (refused_memory > 0) throw std::runtime_error(std::to_string(refused_memory) + " bytes of memory were asked for");
  return refused;
}

}  // namespace ringdp::fuzz

// Who asks without nothrow says that there will be as much.
void* operator new(size_t bytes) {
  if (bytes > ringdp::fuzz::kMost) {
    ringdp::fuzz::refused_memory = bytes;
    throw std::bad_alloc();
  }
  if (void* memory = std::malloc(bytes > 0 ? bytes : 1)) return memory;
  throw std::bad_alloc();
}
void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  return bytes > ringdp::fuzz::kMost ? nullptr : std::malloc(bytes > 0 ? bytes : 1);
}
void* operator new[](size_t bytes) { return operator new(bytes); }
void* operator new[](size_t bytes, const std::nothrow_t& t) noexcept { return operator new(bytes, t); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }
