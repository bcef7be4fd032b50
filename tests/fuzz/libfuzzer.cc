// The same targets for libFuzzer, which makes inputs by looking at what they reach: tests/fuzz/README.md.
// Which of them: --target=NAME, or else the first.
#include <cstdint>
#include <cstring>
#include <string>

#include "fuzz.h"

using namespace ringdp::fuzz;

static const Target* target = nullptr;

extern "C" int LLVMFuzzerInitialize(int* count, char*** words) {
  target = &all_targets().front();
  for (int i = 1; i < *count; ++i)
    if (std::strncmp((*words)[i], "--target=", 9) == 0) target = &target_of((*words)[i] + 9);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  feed(*target, std::string(reinterpret_cast<const char*>(data), size));
  return 0;
}
