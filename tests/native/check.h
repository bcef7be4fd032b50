// What the tests in this folder are written with: TEST(name) { CHECK(condition, what, to, say); }
//
// The executable runs the tests that it is given by name, one process each (test_native.py does so); `--list` prints
// the names. A check that fails throws, which ends its test.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"

namespace ringdp::tests {

struct Test {
  const char* name;
  void (*run)();
};
inline std::vector<Test>& all_tests() {  // function-local, so that it is ready before the first registration
  static std::vector<Test> tests;
  return tests;
}
struct Registration {
  Registration(const char* name, void (*run)()) { all_tests().push_back({name, run}); }
};

// The text of the error that `act` throws; "" if it throws none.
template <class Act>
std::string error_of(const Act& act) {
  try {
    act();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace ringdp::tests

#define TEST(name)                                                     \
  static void name();                                                  \
  static const ::ringdp::tests::Registration name##_test(#name, name); \
  static void name()

#define CHECK(condition, ...)                                                                                     \
  do {                                                                                                            \
    if (!(condition))                                                                                             \
      ::ringdp::fail(::ringdp::ErrorKind::internal, __FILE__, ":", __LINE__, ": " #condition " ", ##__VA_ARGS__); \
  } while (false)
