#include "collectives/run.h"

#include <algorithm>
#include <map>
#include <sstream>
#include <utility>

#include "base/check.h"
#include "kernels/copy.h"
#include "kernels/kernels.h"

namespace ringdp {

const Shared::Mate& Shared::of_rank(int rank) const {
  const auto mate = std::lower_bound(mates.begin(), mates.end(), rank, [](const Mate& m, int r) { return m.rank < r; });
  RINGDP_CHECK(mate != mates.end() && mate->rank == rank);
  return *mate;
}

Run::Run(Schedule schedule, Memory memory, Elements elements, const Header& header, int tag, size_t longest_message,
         Neighbours neighbours, const std::vector<int>& partners, Transport& transport, Shared shared,
         std::unique_ptr<Pieces> pieces)
    : schedule_(std::move(schedule)),
      memory_(memory),
      elements_(elements),
      header_(header),
      tag_(tag),
      checks_(header.flags & Header::kChecksum),
      longest_message_(checks_ ? std::max(longest_message, Checksums::kMost * sizeof(uint32_t)) : longest_message),
      // Of a half, only where every rank has a chunk.
      all_fail_together_(!partners.empty() && header.count >= uint64_t(header.half ? transport.size() : 1)),
      transport_(transport),
      shared_(std::move(shared)),
      pieces_(std::move(pieces)),
      remaining_(schedule_.moves.size()) {
  if (schedule_.scratch) scratch_.reset(new std::byte[schedule_.scratch * size_of(elements_.dtype)]);
  find_channels(neighbours, partners);
  link_moves();
}

Run::~Run() = default;

void Run::find_channels(Neighbours neighbours, const std::vector<int>& partners) {
  std::map<int, Outgoing> out;
  std::map<int, Incoming> in;
  const int size = transport_.size(), rank = transport_.rank();
  if (neighbours == Neighbours::ring && size > 1) {
    out[(rank + 1) % size];
    in[(rank + size - 1) % size];
  }
  for (const int peer : partners) out[peer], in[peer];
  for (int peer = 0; neighbours == Neighbours::all && peer < size; ++peer)
    if (peer != rank) out[peer], in[peer];
  for (size_t i = 0; i < schedule_.moves.size(); ++i) {
    const Move& move = schedule_.moves[i];
    if (move.kind == Kind::send) out[move.peer].moves.push_back(static_cast<int32_t>(i));
    if (move.kind == Kind::receive) in[move.peer].moves.push_back(static_cast<int32_t>(i));
  }
  if (neighbours == Neighbours::mutual) {
    for (const auto& entry : out) in[entry.first];
    for (const auto& entry : in) out[entry.first];
  }
  for (auto& [peer, channel] : out) {
    channel.peer = peer;
    if (checks_) add_checksums(channel);
    outgoing_.push_back(std::move(channel));
  }
  for (auto& [peer, channel] : in) {
    channel.peer = peer;
    if (checks_) add_checksums(channel);
    incoming_.push_back(std::move(channel));
  }
  headers_missing_ = static_cast<int>(incoming_.size());
}

template <class Channel>
void Run::add_checksums(Channel& channel) {
  const std::vector<int32_t> segments = std::exchange(channel.moves, {});
  channel.checksums.emplace(segments.size());
  for (size_t i = 0; i < segments.size(); ++i) {
    channel.moves.push_back(segments[i]);
    if (!channel.checksums->is_full(i)) continue;
    channel.moves.push_back(kChecksums);
    ++checksums_missing_;
  }
}

void Run::link_moves() {
  const auto& moves = schedule_.moves;
  waiting_for_.assign(moves.size(), 0);
  first_dependent_.assign(moves.size() + 1, 0);
  for (const Move& move : moves)
    for (const int32_t a : move.after)
      if (a >= 0) ++first_dependent_[a + 1];
  for (size_t i = 0; i < moves.size(); ++i) first_dependent_[i + 1] += first_dependent_[i];
  dependents_.resize(first_dependent_.back());
  std::vector<int32_t> next(first_dependent_.begin(), first_dependent_.end() - 1);
  for (size_t i = 0; i < moves.size(); ++i)
    for (const int32_t a : moves[i].after)
      if (a >= 0) {
        dependents_[next[a]++] = static_cast<int32_t>(i);
        ++waiting_for_[i];
      }
  for (size_t i = 0; i < moves.size(); ++i) {
    const auto index = static_cast<int32_t>(i);
    if (moves[i].kind == Kind::await) awaits_[moves[i].line].moves.push_back(index);
    if (waiting_for_[i] == 0 && starts_by_itself(index)) ready_.push(index);
  }
}

// The first messages: this rank's header to everybody it will send to, and a receive for each header it expects.
void Run::start() {
  started_ = true;
  for (Incoming& in : incoming_) in.header_request = transport_.receive(in.peer, tag_, &in.header, sizeof in.header);
  for (Outgoing& out : outgoing_) {
    out.posted.emplace_back(-1, transport_.send(out.peer, tag_, &header_, sizeof header_));
  }
}

bool Run::progress() {
  if (finished_) return false;
  bool moved = !started_;
  if (!started_) start();
  moved |= take_headers();
  if (draining_) {
    moved |= drain();
  } else {
    moved |= complete_receives();
    if (!draining_) moved |= take_tokens();
    if (!draining_) moved |= compute();
    if (!draining_) moved |= post();
  }
  moved |= complete_sends();
  check_finished();
  return moved;
}

bool Run::take_headers() {
  bool moved = false;
  for (Incoming& in : incoming_) {
    size_t length = 0;
    if (!in.header_request.pending() || !transport_.test(in.header_request, &length)) continue;
    moved = true;
    if (length == 0) {  // poison of an earlier operation with this tag, which had ended before it came
      in.header_request = transport_.receive(in.peer, tag_, &in.header, sizeof in.header);
      continue;
    }
    --headers_missing_;
    std::string wrong;
    if (length == sizeof(Header) && in.header.poisoned()) {
      wrong = "rank " + std::to_string(transport_.name_of(in.peer)) + " gave up this operation before it sent any data";
    } else if (length != sizeof(Header)) {
      wrong = "rank " + std::to_string(transport_.name_of(in.peer)) + " sent something that is no header";
    } else {
      wrong = difference(header_, in.header, transport_.name_of(in.peer));
    }
    if (!wrong.empty()) fail_with(wrong);
  }
  return moved;
}

bool Run::complete_receives() {
  bool moved = false;
  for (Incoming& in : incoming_) {
    size_t length = 0;
    while (!draining_ && !in.posted.empty() && transport_.test(in.posted.front().second, &length)) {
      const int32_t move = in.posted.front().first;
      in.posted.pop_front();
      moved = true;
      if (length == length_of(in, move)) {
        received(in, move);
        continue;
      }
      in.closed = length == 0;
      fail_with(length == 0 ? "rank " + std::to_string(transport_.name_of(in.peer)) +
                                  " gave up this operation (poison in place of data)"
                            : "rank " + std::to_string(transport_.name_of(in.peer)) +
                                  " sent a segment of an unexpected length");
    }
  }
  return moved;
}

size_t Run::length_of(const Incoming& in, int32_t move) const {
  return move == kChecksums ? in.checksums->bytes_of_next() : bytes_of(schedule_.moves[move]);
}

// A segment is looked at before anything is done with it, as that may overwrite it; it has just come, and lies in the caches.
void Run::received(Incoming& in, int32_t move) {
  ++in.completed;
  if (move == kChecksums) return compare_checksums(in);
  const Move& segment = schedule_.moves[move];
  if (flips_ && bytes_of(segment) > 0) *at(segment.to) ^= std::byte{1}, flips_ = false;
  if (checks_) in.checksums->add(at(segment.to), bytes_of(segment));
  completed(move);
}

void Run::compare_checksums(Incoming& in) {
  --checksums_missing_;
  const auto wrong = in.checksums->compare();
  if (!wrong || damage_) return;
  damage_.from = in.peer, damage_.to = transport_.rank();
  damage_.segment = *wrong;
  size_t segment = 0;
  for (const int32_t move : in.moves) {
    if (move == kChecksums) continue;
    if (segment++ != *wrong) continue;
    damage_.element = element_of(move), damage_.count = schedule_.moves[move].count;
  }
  damage_.segments = segment;
}

// Of the output, where what comes is put, or what it is added to.
uint64_t Run::element_of(int32_t receive) const {
  const auto in_output = [](const Region& region) { return region.place == Place::output; };
  const Region& to = schedule_.moves[receive].to;
  if (in_output(to)) return to.offset;
  for (int32_t d = first_dependent_[receive]; d < first_dependent_[receive + 1]; ++d) {
    const Move& move = schedule_.moves[dependents_[d]];
    if (is_arithmetic(move.kind) && in_output(move.to)) return move.to.offset;
  }
  return Damage::kNowhere;
}

bool Run::complete_sends() {
  bool moved = false;
  for (Outgoing& out : outgoing_) {
    while (!out.posted.empty() && transport_.test(out.posted.front().second)) {
      const int32_t move = out.posted.front().first;
      out.posted.pop_front();
      moved = true;
      if (move >= 0 && !draining_) completed(move);
    }
  }
  return moved;
}

bool Run::take_tokens() {
  bool moved = false;
  for (uint8_t line = 0; line < Move::kLines; ++line) {
    Awaits& awaits = awaits_[line];
    while (awaits.next < awaits.moves.size() && waiting_for_[awaits.moves[awaits.next]] == 0) {
      const int32_t index = awaits.moves[awaits.next];
      const uint64_t wanted = schedule_.moves[index].count;
      bool all_there = true;
      for (size_t m = 0; m < shared_.mates.size() && all_there; ++m) {
        const Shared::Mate& mate = shared_.mates[m];
        if (m == shared_.me) continue;
        // The mark first: a mate that has come so far may have ended, and given up a later operation with the same counts.
        const bool has_stopped = (*mate.counts)[0].load(std::memory_order_acquire) & kStopped;
        all_there = ((*mate.counts)[line].load(std::memory_order_acquire) & ~kStopped) >= mate.base[line] + wanted;
        if (!all_there && has_stopped) {
          fail_with("rank " + std::to_string(transport_.name_of(mate.rank)) + " of this host gave up this operation");
          return true;
        }
      }
      if (!all_there) break;
      ++awaits.next;
      completed(index);
      moved = true;
    }
  }
  return moved;
}

// This rank and all others of its host touch each other's memory no more.
bool Run::all_stopped() const {
  return std::all_of(shared_.mates.begin(), shared_.mates.end(), [](const Shared::Mate& mate) {
    return (*mate.counts)[0].load(std::memory_order_acquire) & kStopped;
  });
}

// Arithmetic, a bounded amount, so that one large operation does not keep the others waiting. Before the headers are
// compared the output must not be written.
bool Run::compute() {
  if (headers_missing_ > 0) return false;
  uint64_t bytes = 0;
  bool moved = false;
  for (; bytes < kComputeBytes; moved = true) {
    if (may_compute())
      bytes += compute_one();
    else if (may_take_out())
      bytes += pieces_->take_out();
    else
      break;
  }
  return moved;
}

uint64_t Run::compute_one() {
  const int32_t index = ready_.top();
  ready_.pop();
  const Move& move = schedule_.moves[index];
  const uint64_t brought = pieces_ ? pieces_->before(move) : 0;
  execute(move);
  completed(index);
  return brought + (move.kind == Kind::signal ? 0 : bytes_of(move));
}

// What is sent for the first time is brought in before; that is a bounded amount, too.
bool Run::post() {
  if (headers_missing_ > 0) return false;
  bool moved = false;
  uint64_t bytes = 0;
  const auto may = [&](const auto& channel) {
    if (channel.next == channel.moves.size() || channel.posted.size() >= kInFlight || bytes >= kComputeBytes)
      return false;
    const int32_t move = channel.moves[channel.next];
    return move == kChecksums || waiting_for_[move] == 0;
  };
  for (Incoming& in : incoming_)
    for (; may(in); moved = true) post_receive(in);
  for (Outgoing& out : outgoing_)
    for (; may(out) && here(out.moves[out.next]); moved = true) bytes += post_send(out);
  return moved;
}

void Run::post_receive(Incoming& in) {
  const int32_t index = in.moves[in.next++];
  if (index == kChecksums) {
    const Checksums::Message message = in.checksums->next_to_receive();
    in.posted.emplace_back(index, transport_.receive(in.peer, tag_, message.data, message.bytes));
    return;
  }
  const Move& move = schedule_.moves[index];
  in.posted.emplace_back(index, transport_.receive(in.peer, tag_, at(move.to), bytes_of(move)));
}

// The bytes that were touched.
size_t Run::post_send(Outgoing& out) {
  const int32_t index = out.moves[out.next++];
  if (index == kChecksums) {
    --checksums_missing_;
    const Checksums::Message message = out.checksums->next_to_send();
    out.posted.emplace_back(index, transport_.send(out.peer, tag_, message.data, message.bytes));
    return message.bytes;
  }
  const Move& move = schedule_.moves[index];
  size_t touched = pieces_ ? pieces_->before(move) : 0;
  const std::byte* from = at(move.from);
  if (checks_) out.checksums->add(from, bytes_of(move)), touched += bytes_of(move);
  out.posted.emplace_back(index, transport_.send(out.peer, tag_, from, bytes_of(move)));
  return touched;
}

void Run::completed(int32_t index) {
  --remaining_;
  if (pieces_) pieces_->after(schedule_.moves[index]);
  for (int32_t d = first_dependent_[index]; d < first_dependent_[index + 1]; ++d) {
    const int32_t dependent = dependents_[d];
    if (--waiting_for_[dependent] == 0 && starts_by_itself(dependent)) ready_.push(dependent);
  }
}

std::byte* Run::at(const Region& region) {
  const size_t offset = region.offset * size_of(elements_.dtype);
  switch (region.place) {
    case Place::input:  // never written: the schedules' tests prove it
      return const_cast<std::byte*>(static_cast<const std::byte*>(memory_.input)) + offset;
    case Place::output:
      if (region.owner != Region::kOwn) return shared_.of_rank(region.owner).output + offset;
      return static_cast<std::byte*>(memory_.output) + offset;
    case Place::area:
      return shared_.of_rank(region.owner).area + offset;
    case Place::scratch:
      return scratch_.get() + offset;
  }
  fail(ErrorKind::internal, "no such place");
}

void Run::execute(const Move& move) {
  if (move.kind == Kind::signal) {
    const Shared::Mate& mine = shared_.mates[shared_.me];
    (*mine.counts)[move.line].store(mine.base[move.line] + move.count, std::memory_order_release);
    shared_.ring();
    return;
  }
  std::byte *to = at(move.to), *from = at(move.from);
  const Dtype dtype = elements_.dtype;
  switch (move.kind) {
    case Kind::reduce:
      kernels::reduce(dtype, elements_.op, to, from, at(move.with), move.count);
      return;
    case Kind::copy:
      if (move.prescale)
        elements_.begin(to, from, move.count);
      else if (memory_.copy)
        memory_.copy(to, from, bytes_of(move));
      else if (to != from)
        kernels::copy(to, from, bytes_of(move));
      return;
    case Kind::finish:
      elements_.finish(to, from, move.count);
      return;
    default:
      fail(ErrorKind::internal, "a move that is no arithmetic");
  }
}

void Run::poison(const std::string& why) {
  if (!finished_ && !draining_) {
    header_.flags |= started_ ? 0 : Header::kPoison;
    if (!started_) start();
    fail_with(why);
  }
}

// From here on nothing is computed, what has been posted completes, and the neighbours are told.
void Run::fail_with(const std::string& why) {
  if (error_.empty()) error_ = why;
  if (draining_) return;
  draining_ = true;
  for (Outgoing& out : outgoing_) out.posted.emplace_back(-1, transport_.send(out.peer, tag_, nullptr, 0));
  if (shared_.mates.empty()) return;
  (*shared_.mates[shared_.me].counts)[0].fetch_or(kStopped, std::memory_order_release);
  shared_.ring();
}

bool Run::drain() {
  bool moved = false;
  for (Incoming& in : incoming_) moved |= drain_channel(in);
  return moved;
}

// Posted receives complete into their own regions (the output is void now); then whatever comes goes into a spare
// buffer, one message at a time, until poison or until a matching neighbour has sent all it had.
bool Run::drain_channel(Incoming& in) {
  if (in.header_request.pending()) return false;
  bool moved = false;
  size_t length = 0;
  while (!in.closed && !in.posted.empty() && transport_.test(in.posted.front().second, &length)) {
    in.posted.pop_front();
    in.closed = length == 0;
    in.completed += length != 0;
    moved = true;
  }
  if (in.closed) {
    for (auto& [move, request] : in.posted) transport_.cancel(request);
    in.posted.clear();
    return moved;
  }
  const bool same = !in.header.poisoned() && difference(header_, in.header, transport_.name_of(in.peer)).empty();
  if (in.posted.empty() && same && in.completed == in.moves.size() && !all_fail_together_) {
    in.closed = true;
  } else if (in.posted.empty()) {
    if (!in.spare) in.spare.reset(new std::byte[longest_message_]);
    in.posted.emplace_back(-1, transport_.receive(in.peer, tag_, in.spare.get(), longest_message_));
    moved = true;
  }
  return moved;
}

void Run::check_finished() {
  const auto idle = [](const auto& channel) { return channel.posted.empty(); };
  if (draining_) {
    const auto closed = [](const Incoming& in) { return in.closed && in.posted.empty(); };
    finished_ = std::all_of(outgoing_.begin(), outgoing_.end(), idle) &&
                std::all_of(incoming_.begin(), incoming_.end(), closed) && all_stopped();
  } else {
    finished_ = remaining_ == 0 && headers_missing_ == 0 && checksums_missing_ == 0 && (!pieces_ || pieces_->done()) &&
                std::all_of(outgoing_.begin(), outgoing_.end(), idle);
  }
}

void Run::abandon() {
  for (Incoming& in : incoming_) {
    if (in.header_request.pending()) transport_.cancel(in.header_request);
    for (auto& [move, request] : in.posted) transport_.cancel(request);
    in.posted.clear();
  }
  finished_ = true;
}

}  // namespace ringdp
