// What is done to the elements of an operation besides adding them: scaled before, divided and scaled after.
#pragma once

#include <cstddef>

#include "base/dtype.h"

namespace ringdp {

struct Elements {
  Dtype dtype = Dtype::float32;
  ReduceOp op = ReduceOp::sum;
  double prescale = 1;   // copy moves with `prescale`
  int divide = 1;        // finish moves divide by this first,
  double postscale = 1;  // then multiply by this

  void begin(void* to, const void* from, size_t count) const;   // prescale, or a copy
  void finish(void* to, const void* from, size_t count) const;  // divide and postscale, or nothing
};

}  // namespace ringdp
