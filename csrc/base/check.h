// The one throwing check of the library: its message is the text of the condition.
#pragma once

#include "base/error.h"

#define RINGDP_CHECK(condition, ...)                                                                           \
  do {                                                                                                         \
    if (!(condition))                                                                                          \
      ::ringdp::fail(::ringdp::ErrorKind::internal, "internal check failed: " #condition, " (", __FILE__, ":", \
                     __LINE__, ") ", ##__VA_ARGS__);                                                           \
  } while (false)
