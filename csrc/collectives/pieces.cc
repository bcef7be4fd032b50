#include "collectives/pieces.h"

#include <algorithm>

namespace ringdp {

namespace {

// The regions that the schedules' `input` and `output` mean, which are one memory here.
bool is_ours(const Region& region) { return region.place == Place::input || region.place == Place::output; }

bool reads(const Move& move) { return is_arithmetic(move.kind) || move.kind == Kind::send; }
bool writes_ours(const Move& move) {
  return (is_arithmetic(move.kind) || move.kind == Kind::receive) && is_ours(move.to);
}

}  // namespace

Pieces::Pieces(const Schedule& schedule, uint64_t count, uint64_t piece)
    : count_(count), piece_(piece), writers_((count + piece - 1) / piece), left_(writers_.size()) {
  for (const Move& move : schedule.moves) {
    if (!writes_ours(move)) continue;
    const Range range = pieces_of(move.to, move.count);
    for (uint64_t p = range.begin; p < range.end; ++p) ++writers_[p];
  }
  for (uint64_t p = 0; p < writers_.size(); ++p)
    if (writers_[p] == 0) out_.push(p);
}

template <class Act>
void Pieces::for_each_read(const Move& move, const Act& act) const {
  const auto read = [&](const Region& region) {
    if (!is_ours(region)) return;
    const Range range = pieces_of(region, move.count);
    for (uint64_t p = range.begin; p < range.end; ++p) act(p);
  };
  if (reads(move)) read(move.from);
  if (move.kind == Kind::reduce) read(move.with);
}

bool Pieces::here(const Move& move) {
  bool all = true;
  for_each_read(move, [&](uint64_t piece) { all = all && arrived(piece); });
  return all;
}

uint64_t Pieces::before(const Move& move) {
  uint64_t bytes = 0;
  for_each_read(move, [&](uint64_t piece) { bytes += bring_in(piece); });
  return bytes;
}

void Pieces::after(const Move& move) {
  if (!writes_ours(move)) return;
  const Range range = pieces_of(move.to, move.count);
  for (uint64_t p = range.begin; p < range.end; ++p)
    if (--writers_[p] == 0) out_.push(p);
}

uint64_t Pieces::take_out() {
  const uint64_t piece = out_.front();
  out_.pop();
  --left_;
  const uint64_t brought = bring_in(piece);
  return brought + bring_out(piece);
}

std::vector<uint64_t> Pieces::order_of_reading(const Schedule& schedule) const {
  std::vector<uint64_t> order;
  std::vector<bool> seen(pieces());
  const auto add = [&](uint64_t piece) {
    if (!seen[piece]) order.push_back(piece);
    seen[piece] = true;
  };
  for (const Move& move : schedule.moves) for_each_read(move, add);
  for (uint64_t piece = 0; piece < pieces(); ++piece) add(piece);
  return order;
}

uint64_t Pieces::size_of_piece(uint64_t piece) const { return std::min(piece_, count_ - piece * piece_); }

Pieces::Range Pieces::pieces_of(const Region& region, uint64_t count) const {
  return {region.offset / piece_, (region.offset + count - 1) / piece_ + 1};
}

}  // namespace ringdp
