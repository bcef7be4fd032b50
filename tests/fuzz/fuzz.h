// What the targets in this folder are written with: FUZZ(name, corpus) { … input … } gives `input`, any bytes, to a parser.
//
// The parser may refuse it with a ringdp::Error, and nothing else: no other exception, no crash, no wait, no memory that
// the input does not account for. `corpus` returns inputs that are right, of which others are made. driver.cc makes them,
// the same ones each time; libfuzzer.cc lets libFuzzer make them. To add a target: a file here, nothing else.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "base/error.h"

namespace ringdp::fuzz {

struct Target {
  const char* name;
  void (*run)(const std::string& input);
  std::vector<std::string> (*corpus)();
};
inline std::vector<Target>& all_targets() {  // function-local, so that it is ready before the first registration
  static std::vector<Target> targets;
  return targets;
}
struct Registration {
  Registration(const char* name, void (*run)(const std::string&), std::vector<std::string> (*corpus)()) {
    all_targets().push_back({name, run, corpus});
  }
};
const Target& target_of(const std::string& name);  // throws where there is none

// True if it was refused.
bool feed(const Target& target, const std::string& input);

// Reads an input as a target likes; zeros behind its end.
class Input {
 public:
  explicit Input(const std::string& bytes) : bytes_(bytes) {}
  bool is_over() const { return at_ >= bytes_.size(); }
  template <class T>
  T take() {
    T value{};
    const std::string some = take(sizeof value);
    std::memcpy(&value, some.data(), some.size());
    return value;
  }
  std::string take(size_t bytes) {
    const std::string some = is_over() ? "" : bytes_.substr(at_, bytes);
    at_ += bytes;
    return some;
  }
  std::string rest() { return take(bytes_.size()); }

 private:
  const std::string& bytes_;
  size_t at_ = 0;
};

template <class T>
std::string bytes_of(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

}  // namespace ringdp::fuzz

#define FUZZ(name, corpus)                                                      \
  static void name(const std::string& input);                                   \
  static const ::ringdp::fuzz::Registration name##_target(#name, name, corpus); \
  static void name(const std::string& input)
