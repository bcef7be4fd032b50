#include "collectives/casts.h"

#include "kernels/kernels.h"

namespace ringdp {

Casts::Casts(const Schedule& schedule, const Wide& wide, void* narrow, Dtype dtype, uint64_t count, uint64_t piece)
    : Pieces(schedule, count, piece),
      wide_(wide),
      narrow_(static_cast<std::byte*>(narrow)),
      dtype_(dtype),
      is_in_(pieces()) {}

uint64_t Casts::bring_in(uint64_t piece) {
  if (is_in_[piece]) return 0;
  is_in_[piece] = true;
  const uint64_t begin = begin_of(piece), elements = size_of_piece(piece);
  kernels::narrow(dtype_, narrow_ + begin * size_of(dtype_), wide_.dtype,
                  static_cast<const std::byte*>(wide_.input) + begin * size_of(wide_.dtype), elements);
  return elements * size_of(wide_.dtype);
}

uint64_t Casts::bring_out(uint64_t piece) {
  const uint64_t begin = begin_of(piece), elements = size_of_piece(piece);
  kernels::widen(wide_.dtype, static_cast<std::byte*>(wide_.output) + begin * size_of(wide_.dtype), dtype_,
                 narrow_ + begin * size_of(dtype_), elements);
  return elements * size_of(wide_.dtype);
}

}  // namespace ringdp
