// Gives each target so many inputs, or for so long. The inputs are the same each time.
//
//   fuzz --list                              the targets
//   fuzz --seconds S [--first N] [target …]  S seconds for each of these, or of all
//   fuzz --count C [--first N] [target …]    C inputs for each
//   fuzz --input FILE target                 that one, as libFuzzer leaves it behind
//   fuzz --write FOLDER target               its corpus, a file each
#include <unistd.h>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "fuzz.h"
#include "mutate.h"

extern "C" void __sanitizer_set_death_callback(void (*callback)()) __attribute__((weak));

using namespace ringdp;
using namespace ringdp::fuzz;

namespace {

constexpr unsigned kLong = 20;  // seconds that no input takes

struct Options {
  double seconds = 1e6;
  uint64_t first = 0, count = ~uint64_t{0};
  std::string input, folder;
  std::vector<std::string> targets;
};

// What is under way, for who dies of it.
char under_way[200];

void say_what_was_under_way() {
  if (under_way[0] != '\0' && write(STDERR_FILENO, under_way, std::strlen(under_way)) < 0) return;
}

void die(int number) {
  say_what_was_under_way();
  std::signal(number, SIG_DFL);
  std::raise(number);
}

void watch() {
  if (__sanitizer_set_death_callback) return __sanitizer_set_death_callback(say_what_was_under_way);
  for (const int number : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT}) std::signal(number, die);
}

void feed_many(const Target& target, const Options& options) {
  const std::vector<std::string> corpus = target.corpus();
  for (const std::string& right : corpus)
    if (feed(target, right)) fail(ErrorKind::internal, target.name, " refuses what is right");
  const Deadline end = Deadline::in(Seconds(options.seconds));
  uint64_t fed = 0, refused = 0;
  for (; fed < options.count && !end.passed(); ++fed) {
    const uint64_t number = options.first + fed;
    std::snprintf(under_way, sizeof under_way, "FAILED: again: fuzz --count 1 --first %llu %s\n",
                  static_cast<unsigned long long>(number), target.name);
    if (fed % 256 == 0) alarm(kLong);
    refused += feed(target, mutated(corpus, number));
  }
  alarm(0);
  under_way[0] = '\0';
  std::printf("%s: %llu inputs, %llu refused\n", target.name, static_cast<unsigned long long>(fed),
              static_cast<unsigned long long>(refused));
  std::fflush(stdout);
}

void feed_file(const Target& target, const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  std::puts(feed(target, bytes) ? "refused" : "taken");
}

void write_corpus(const Target& target, const std::string& folder) {
  int number = 0;
  for (const std::string& right : target.corpus()) {
    std::ofstream file(folder + "/" + target.name + "." + std::to_string(number++), std::ios::binary);
    if (!(file << right)) fail(ErrorKind::usage, folder, " cannot be written to");
  }
}

Options parsed(int count, char** words) {
  Options options;
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    const char* value = i + 1 < count ? words[i + 1] : "";
    if (word == "--seconds")
      options.seconds = std::strtod(value, nullptr), ++i;
    else if (word == "--first")
      options.first = std::strtoull(value, nullptr, 10), ++i;
    else if (word == "--count")
      options.count = std::strtoull(value, nullptr, 10), ++i;
    else if (word == "--input")
      options.input = value, ++i;
    else if (word == "--write")
      options.folder = value, ++i;
    else
      options.targets.push_back(target_of(word).name);
  }
  return options;
}

}  // namespace

int main(int count, char** words) {
  if (count == 2 && std::strcmp(words[1], "--list") == 0) {
    for (const Target& target : all_targets()) std::puts(target.name);
    return 0;
  }
  watch();
  std::signal(SIGALRM, die);
  try {
    Options options = parsed(count, words);
    if (options.targets.empty())
      for (const Target& target : all_targets()) options.targets.push_back(target.name);
    for (const std::string& name : options.targets) {
      const Target& target = target_of(name);
      if (!options.input.empty())
        feed_file(target, options.input);
      else if (!options.folder.empty())
        write_corpus(target, options.folder);
      else
        feed_many(target, options);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s%s\n", under_way, error.what());
    return 1;
  }
  return 0;
}
