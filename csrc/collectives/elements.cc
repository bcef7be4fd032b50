#include "collectives/elements.h"

#include "kernels/copy.h"
#include "kernels/kernels.h"

namespace ringdp {

void Elements::begin(void* to, const void* from, size_t count) const {
  if (prescale != 1)
    kernels::scale(dtype, to, from, prescale, count);
  else if (to != from && count > 0)
    kernels::copy(to, from, count * size_of(dtype));
}

void Elements::finish(void* to, const void* from, size_t count) const {
  if (divide != 1) {
    kernels::divide(dtype, to, from, divide, count);
    from = to;
  }
  if (postscale != 1) kernels::scale(dtype, to, from, postscale, count);
}

}  // namespace ringdp
