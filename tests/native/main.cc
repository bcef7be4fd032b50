// Runs the tests whose names are given; `--list` prints all names, `--bits` a digest of what the kernels compute.
#include <cstdio>
#include <cstring>
#include <exception>

#include "check.h"
#include "kernel_bits.h"

using namespace ringdp::tests;

namespace {

void run(const char* name) {
  for (const Test& test : all_tests())
    if (std::strcmp(test.name, name) == 0) return test.run();
  ringdp::fail(ringdp::ErrorKind::usage, "there is no test ", name);
}

int list() {
  for (const Test& test : all_tests()) std::puts(test.name);
  return 0;
}

}  // namespace

// Not one of the tests, so that whoever runs these can see that a failure is noticed.
static void a_check_that_fails() { CHECK(1 + 1 == 3, "as it must"); }

int main(int count, char** words) {
  if (count == 2 && std::strcmp(words[1], "--list") == 0) return list();
  try {
    for (int i = 1; i < count; ++i) {
      if (std::strcmp(words[i], "--bits") == 0)
        std::printf("%016llx\n", static_cast<unsigned long long>(digest_of_kernels()));
      else if (std::strcmp(words[i], "--fail") == 0)
        a_check_that_fails();
      else
        run(words[i]);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "FAILED: %s\n", error.what());
    return 1;
  }
  return 0;
}
