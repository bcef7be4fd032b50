#include "collectives/ring_walk.h"

namespace ringdp {

RingWalk::RingWalk(Ring ring, Chunk part, Pipeline pipeline, bool finish, Half half)
    : half_(half),
      ring_(std::move(ring)),
      part_(part),
      pipeline_(pipeline),
      finish_(finish),
      slot_(std::min(pipeline.segment, longest_chunk())),
      scratch_slots_(
          half == Half::all_gather ? 0 : std::min<uint64_t>(pipeline.depth, (ring_.ranks - 1) * cut_of(0).size())),
      sent_(ring_.ranks),
      slots_(0, scratch_slots_, slot_),
      window_(pipeline.depth) {}

void RingWalk::walk() {
  if (half_ == Half::all_gather) {
    send_own();
  } else {
    send_first();
    for (int hop = 0; hop < ring_.ranks - 1; ++hop) reduce_and_send_on(hop);
  }
  if (half_ == Half::reduce_scatter) return;
  for (int hop = 0; hop < ring_.ranks - 1; ++hop) gather_and_send_on(hop);
}

void RingWalk::send_own() {
  const Cut cut = cut_of(ring_.rank);
  for (uint64_t i = 0; i < cut.size(); ++i) {
    const auto [at, n] = cut[i];
    moves_.send(ring_.next(), in_output(at), n, {});
    complete(at, n, kNone);
  }
}

void RingWalk::send_first() {
  const int chunk = ring_.behind(1);
  const Cut cut = cut_of(chunk);
  for (uint64_t i = 0; i < cut.size(); ++i) {
    const auto [at, n] = cut[i];
    const Own mine = own(at, n);
    const int32_t sent = moves_.send(ring_.next(), mine.region, n, {mine.ready});
    sent_[chunk].push_back(mine.in_output ? sent : kNone);
  }
}

void RingWalk::reduce_and_send_on(int hop) {
  const int chunk = ring_.behind(hop + 2);
  const bool is_last = chunk == ring_.rank;
  const Cut cut = cut_of(chunk);
  for (uint64_t i = 0; i < cut.size(); ++i) {
    const auto [at, n] = cut[i];
    const Region slot = slots_.region(), output = in_output(at);
    const Own mine = own(at, n);
    const int32_t received = moves_.receive(ring_.previous(), slot, n, {slots_.freed_by()});
    int32_t ready = moves_.reduce(output, mine.region, slot, n, {received, mine.ready});
    window_.add(received);
    slots_.read_by(ready);
    if (is_last && finish_) ready = moves_.finish(output, output, n, {ready});
    if (!is_last || half_ == Half::both) sent_[chunk].push_back(moves_.send(ring_.next(), output, n, {ready}));
    if (is_last) complete(at, n, ready);
  }
}

void RingWalk::gather_and_send_on(int hop) {
  const int chunk = ring_.behind(hop + 1);
  const Cut cut = cut_of(chunk);
  for (uint64_t i = 0; i < cut.size(); ++i) {
    const auto [at, n] = cut[i];
    // What the output held of this segment, a partial sum, must have left before it is overwritten.
    const int32_t left = half_ == Half::both ? sent_[chunk][i] : kNone;
    const int32_t received = moves_.receive(ring_.previous(), in_output(at), n, {window_.oldest(), left});
    window_.add(received);
    if (hop < ring_.ranks - 2) moves_.send(ring_.next(), in_output(at), n, {received});
    complete(at, n, received);
  }
}

}  // namespace ringdp
