#include "agree/dissemination.h"

#include <utility>

#include "base/check.h"

namespace ringdp {

int Dissemination::exchanges() const {
  int n = 0;
  while ((int64_t{1} << n) < transport_.size()) ++n;
  return n;
}

void Dissemination::arm(size_t words) {
  RINGDP_CHECK(!armed_ && !running_);
  theirs_.assign(words, 0);
  armed_ = true;
  received_ = false;
  const int size = transport_.size();
  if (size > 1) receive_ = transport_.receive((transport_.rank() + size - 1) % size, tag_, theirs_.data(), 8 * words);
}

bool Dissemination::heard() {
  if (armed_ && !received_ && receive_.pending()) received_ = transport_.test(receive_);
  return received_;
}

void Dissemination::enter(Words mine, Merge merge) {
  RINGDP_CHECK(!running_);
  if (!armed_) arm(mine.size());
  RINGDP_CHECK(theirs_.size() == mine.size());
  armed_ = false;
  running_ = true;
  mine_ = std::move(mine);
  merge_ = std::move(merge);
  outgoing_.assign(exchanges(), {});
  sends_.assign(exchanges(), {});
  exchange_ = 0;
  if (exchanges() > 0) begin_exchange();
}

void Dissemination::begin_exchange() {
  const int size = transport_.size(), rank = transport_.rank(), distance = 1 << exchange_;
  Words& out = outgoing_[exchange_] = mine_;
  sends_[exchange_] = transport_.send((rank + distance) % size, tag_, out.data(), 8 * out.size());
  if (exchange_ > 0) {
    received_ = false;
    receive_ = transport_.receive((rank + size - distance) % size, tag_, theirs_.data(), 8 * theirs_.size());
  }
}

bool Dissemination::progress() {
  moved_ = false;
  if (!running_) return false;
  while (exchange_ < exchanges()) {
    if (!received_) received_ = transport_.test(receive_);
    if (!received_) return false;
    moved_ = true;
    merge_(mine_, theirs_);
    if (++exchange_ < exchanges()) begin_exchange();
  }
  for (Request& send : sends_)
    if (send.pending() && !transport_.test(send)) return false;
  received_ = running_ = false;
  moved_ = true;
  return true;
}

void Dissemination::cancel() {
  if (receive_.pending()) transport_.cancel(receive_);
  armed_ = received_ = running_ = false;
}

}  // namespace ringdp
