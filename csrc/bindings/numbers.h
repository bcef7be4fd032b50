// What the bindings on raw memory take for pointers and dtypes.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <string>

#include "base/dtype.h"

inline void* pointer(uintptr_t address) { return reinterpret_cast<void*>(address); }

inline ringdp::Dtype dtype_of(int number) {
  if (number < 0 || number >= ringdp::kDtypes)
    throw nanobind::value_error(("no dtype has number " + std::to_string(number)).c_str());
  return static_cast<ringdp::Dtype>(number);
}

inline ringdp::ReduceOp operation_of(int number, int known) {  // one of the first so many
  if (number < 0 || number >= known)
    throw nanobind::value_error(("no reduce operation has number " + std::to_string(number)).c_str());
  return static_cast<ringdp::ReduceOp>(number);
}
