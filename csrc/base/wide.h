// A tensor of wide floats whose operation travels in 16 bits: the submission's own memory holds what travels, this is where
// it is cast from, and where the result is cast to (collectives/casts.h).
#pragma once

#include "base/dtype.h"

namespace ringdp {

struct Wide {
  Dtype dtype = Dtype::float32;
  const void* input = nullptr;
  void* output = nullptr;  // may be the input; nullptr: nothing is cast

  explicit operator bool() const { return output != nullptr; }
};

}  // namespace ringdp
