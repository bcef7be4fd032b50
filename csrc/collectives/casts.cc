#include "collectives/casts.h"

#include <algorithm>

#include "kernels/kernels.h"

namespace ringdp {

namespace {

// The regions that the schedules' `input` and `output` mean, which are one memory here.
bool is_cast(const Region& region) { return region.place == Place::input || region.place == Place::output; }

bool reads(const Move& move) { return is_arithmetic(move.kind) || move.kind == Kind::send; }
bool writes_cast(const Move& move) {
  return (is_arithmetic(move.kind) || move.kind == Kind::receive) && is_cast(move.to);
}

}  // namespace

Casts::Casts(const Schedule& schedule, const Wide& wide, void* narrow, Dtype dtype, uint64_t count, uint64_t piece)
    : wide_(wide),
      narrow_(static_cast<std::byte*>(narrow)),
      dtype_(dtype),
      count_(count),
      piece_(piece),
      pieces_((count + piece - 1) / piece),
      left_(pieces_.size()) {
  for (const Move& move : schedule.moves) {
    if (!writes_cast(move)) continue;
    const Range range = pieces_of(move.to, move.count);
    for (uint64_t p = range.begin; p < range.end; ++p) ++pieces_[p].writers;
  }
  for (uint64_t p = 0; p < pieces_.size(); ++p)
    if (pieces_[p].writers == 0) out_.push(p);
}

uint64_t Casts::before(const Move& move) {
  uint64_t bytes = 0;
  const auto read = [&](const Region& region) {
    if (!is_cast(region)) return;
    const Range range = pieces_of(region, move.count);
    for (uint64_t p = range.begin; p < range.end; ++p) bytes += cast_in(p);
  };
  if (reads(move)) read(move.from);
  if (move.kind == Kind::reduce) read(move.with);
  return bytes;
}

void Casts::after(const Move& move) {
  if (!writes_cast(move)) return;
  const Range range = pieces_of(move.to, move.count);
  for (uint64_t p = range.begin; p < range.end; ++p)
    if (--pieces_[p].writers == 0) out_.push(p);
}

uint64_t Casts::cast_out() {
  const uint64_t piece = out_.front();
  out_.pop();
  --left_;
  const uint64_t bytes = cast_in(piece), begin = piece * piece_, elements = size_of_piece(piece);
  kernels::widen(wide_.dtype, static_cast<std::byte*>(wide_.output) + begin * size_of(wide_.dtype), dtype_,
                 narrow_ + begin * size_of(dtype_), elements);
  return bytes + elements * size_of(wide_.dtype);
}

uint64_t Casts::cast_in(uint64_t piece) {
  if (pieces_[piece].is_in) return 0;
  pieces_[piece].is_in = true;
  const uint64_t begin = piece * piece_, elements = size_of_piece(piece);
  kernels::narrow(dtype_, narrow_ + begin * size_of(dtype_), wide_.dtype,
                  static_cast<const std::byte*>(wide_.input) + begin * size_of(wide_.dtype), elements);
  return elements * size_of(wide_.dtype);
}

uint64_t Casts::size_of_piece(uint64_t piece) const { return std::min(piece_, count_ - piece * piece_); }

Casts::Range Casts::pieces_of(const Region& region, uint64_t count) const {
  return {region.offset / piece_, (region.offset + count - 1) / piece_ + 1};
}

}  // namespace ringdp
