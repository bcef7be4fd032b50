#include "shared/mail.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace ringdp {

// A part: its head, a cursor for each member, then the lines of the outbox.
size_t Mail::part_bytes(int members) { return sizeof(Head) + members * sizeof(Cursor) + kLines * sizeof(Letter); }

Mail::Part::Part(std::byte* memory, int members)
    : head(reinterpret_cast<Head*>(memory)),
      cursors(reinterpret_cast<Cursor*>(memory + sizeof(Head))),
      lines(reinterpret_cast<Letter*>(memory + sizeof(Head) + members * sizeof(Cursor))) {}

void Mail::prepare(std::byte* memory, int members, uint64_t secret) {
  std::memset(memory, 0, part_bytes(members));
  Part(memory, members).head->secret = secret;
}

uint64_t Mail::make(Heap& heap, int members) {
  const size_t bytes = part_bytes(members);
  auto* part = static_cast<std::byte*>(heap.allocate(bytes));
  if (part == nullptr) return Heap::kNowhere;
  prepare(part, members, heap.card().token[0] ^ heap.card().token[1]);
  return heap.offset_of(part, bytes);
}

Mail::Mail(int me, const std::vector<std::byte*>& parts, std::vector<int> names) : me_(me), names_(std::move(names)) {
  const int members = static_cast<int>(parts.size());
  for (int m = 0; m < members; ++m) {
    const Part part(parts[m], members);
    if (m != me) {
      inboxes_.push_back({m, part.lines, &part.cursors[me], part.head->secret});
      continue;
    }
    lines_ = part.lines;
    secret_ = part.head->secret;
    for (int reader = 0; reader < members; ++reader)
      if (reader != me) readers_.push_back(&part.cursors[reader]);
  }
}

void Mail::refuse(int member) const {
  const auto name = [this](int m) { return names_.empty() ? m : names_[static_cast<size_t>(m)]; };
  fail(ErrorKind::transport, "rank ", name(me_), ": what rank ", name(member),
       " has written into the memory of their host makes no sense");
}

void Mail::post(const Note& note, const void* payload) {
  RINGDP_CHECK(note.bytes <= kMostPayload);
  if (overflow_.empty() && write(note, payload)) return;
  const auto* bytes = static_cast<const std::byte*>(payload);
  overflow_.push_back({note, {bytes, bytes + note.bytes}});
}

bool Mail::post_overflow() {
  bool moved = false;
  while (!overflow_.empty() && write(overflow_.front().note, overflow_.front().payload.data())) {
    overflow_.pop_front();
    moved = true;
  }
  return moved;
}

// A letter and its payload lie in one piece: a gap fills what is left at the end of the ring if that is too short.
bool Mail::write(const Note& note, const void* payload) {
  const uint64_t lines = lines_of(note.bytes), left = kLines - at_ % kLines;
  const uint64_t gap = lines > left ? left : 0;
  if (!has_room(gap + lines)) return false;
  if (gap > 0) {
    Letter& filler = lines_[at_ % kLines];
    filler.flags = Note::kGap;
    filler.ticket = gap;
    filler.stamp.store(at_ + secret_, std::memory_order_release);
    at_ += gap;
  }
  Letter& line = lines_[at_ % kLines];
  static_cast<Note&>(line) = note;
  if (note.bytes > 0)
    std::memcpy(note.bytes <= Letter::kInLine ? static_cast<void*>(line.in_line) : &line + 1, payload, note.bytes);
  line.stamp.store(at_ + secret_, std::memory_order_release);
  at_ += lines;
  return true;
}

bool Mail::has_room(uint64_t lines) {
  if (at_ + lines <= room_until_) return true;
  uint64_t slowest = at_;
  for (const Cursor* reader : readers_) slowest = std::min(slowest, reader->read.load(std::memory_order_acquire));
  room_until_ = slowest + kLines;
  return at_ + lines <= room_until_;
}

}  // namespace ringdp
