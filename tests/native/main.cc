// Runs the tests whose names are given; `--list` prints all names, `--bits` a digest of what the kernels compute,
// `--play turns|threads FIRST COUNT [SECONDS]` plays the scenarios of so many seeds (play.h).
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "check.h"
#include "kernel_bits.h"
#include "play.h"

using namespace ringdp::tests;

namespace {

void run(const std::string& name) {
  for (const Test& test : all_tests())
    if (name == test.name) return test.run();
  ringdp::fail(ringdp::ErrorKind::usage, "there is no test ", name);
}

void list() {
  for (const Test& test : all_tests()) std::puts(test.name);
}

void play(const std::vector<std::string>& words) {
  if (words.size() < 4 || (words[1] != "turns" && words[1] != "threads"))
    ringdp::fail(ringdp::ErrorKind::usage, "--play turns|threads FIRST COUNT [SECONDS]");
  const double seconds = words.size() > 4 ? std::strtod(words[4].c_str(), nullptr) : 1e6;
  play_many(std::strtoull(words[2].c_str(), nullptr, 10), std::strtoull(words[3].c_str(), nullptr, 10), seconds,
            words[1] == "turns" ? Way::turns : Way::threads);
}

}  // namespace

// Not one of the tests, so that whoever runs these can see that a failure is noticed.
static void a_check_that_fails() { CHECK(1 + 1 == 3, "as it must"); }

int main(int count, char** words) {
  const std::vector<std::string> given(words + 1, words + count);
  try {
    if (!given.empty() && given[0] == "--play") return play(given), 0;
    for (const std::string& word : given) {
      if (word == "--list")
        list();
      else if (word == "--bits")
        std::printf("%016llx\n", static_cast<unsigned long long>(digest_of_kernels()));
      else if (word == "--fail")
        a_check_that_fails();
      else
        run(word);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "FAILED: %s\n", error.what());
    return 1;
  }
  return 0;
}
