// What a GPU would answer with a hang, an error at some later time, or wrong numbers: here the process ends, and says why.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

namespace standin {

[[noreturn]] inline void misuse(const std::string& what) {
  std::fprintf(stderr, "stand-in: %s\n", what.c_str());
  std::abort();
}

}  // namespace standin
