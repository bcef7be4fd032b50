// Letters between the ranks of a host: each rank writes into an outbox of its own, which all others read.
//
// An outbox is a ring of cache lines in the writer's heap. A letter is one line, and its payload follows it unless it fits
// into the line. Its stamp, written last, is its position in the stream of letters plus a random secret: so a reader looks
// at a single line to see whether something has come, an old letter is never taken for a new one, and neither is payload
// (but once in 2^64 looks). The writer goes on until it would overwrite what some reader has not read.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <deque>
#include <vector>

#include "agree/note.h"
#include "shared/heap.h"

namespace ringdp {

struct alignas(64) Letter : Note {
  static constexpr uint32_t kInLine = 16;

  std::atomic<uint64_t> stamp{0};
  std::byte in_line[kInLine] = {};
};
static_assert(sizeof(Letter) == 64, "a letter is one cache line");

class Mail {
 public:
  static constexpr uint32_t kMostPayload = 32 << 10;                   // bytes
  static size_t part_bytes(int members);                               // what one rank's part takes of its heap
  static void prepare(std::byte* part, int members, uint64_t secret);  // by its owner, before the others use it
  static uint64_t make(Heap& heap, int members);  // both, in the owner's heap: its offset; nowhere without memory

  // parts[i]: the part of member i as mapped here, prepared. names[i]: what users are told of it; none: its number here.
  Mail(int me, const std::vector<std::byte*>& parts, std::vector<int> names = {});

  // To all other members. Waits in this process's memory where the outbox is full: poll() carries it on.
  void post(const Note& note, const void* payload);

  // Calls take(member, note, payload) for each letter that has come; the memory is valid during the call only. What a
  // letter says of its own length is read once and believed within the outbox alone.
  template <class Take>
  bool poll(Take&& take) {
    bool moved = !overflow_.empty() && post_overflow();
    for (Inbox& in : inboxes_) {
      while (const Letter* letter = next(in)) {
        moved = true;
        const Note note = *letter;
        if (!fits(in, note)) refuse(in.member);
        if (!(note.flags & Note::kGap)) take(in.member, note, payload_of(*letter, note));
        done_with(in, note);
      }
    }
    return moved;
  }
  bool all_posted() const { return overflow_.empty(); }

  [[noreturn]] void refuse(int member) const;  // what it has written makes no sense

 private:
  static constexpr uint64_t kLines = 4096;  // 256 KiB
  struct alignas(64) Head {
    uint64_t secret;
  };
  struct alignas(64) Cursor {
    std::atomic<uint64_t> read;
  };
  struct Part {
    Head* head;
    Cursor* cursors;  // of the readers, by member
    Letter* lines;
    Part(std::byte* memory, int members);
  };
  struct Inbox {
    int member;
    const Letter* lines;
    Cursor* cursor;  // ours, in the writer's part
    uint64_t secret;
    uint64_t at = 0;
  };

  static uint64_t lines_of(uint32_t bytes) { return 1 + (bytes <= Letter::kInLine ? 0 : (bytes + 63) / 64); }
  static const void* payload_of(const Letter& letter, const Note& note) {
    return note.bytes <= Letter::kInLine ? static_cast<const void*>(letter.in_line) : &letter + 1;
  }
  static bool fits(const Inbox& in, const Note& note) {
    const uint64_t left = kLines - in.at % kLines;
    if (note.flags & Note::kGap) return note.ticket > 0 && note.ticket <= left;
    return note.bytes <= kMostPayload && lines_of(note.bytes) <= left;
  }
  const Letter* next(const Inbox& in) const {
    const Letter& letter = in.lines[in.at % kLines];
    return letter.stamp.load(std::memory_order_acquire) == in.at + in.secret ? &letter : nullptr;
  }
  void done_with(Inbox& in, const Note& note) {
    in.at += (note.flags & Note::kGap) ? note.ticket : lines_of(note.bytes);
    in.cursor->read.store(in.at, std::memory_order_release);
  }
  bool write(const Note& note, const void* payload);
  bool has_room(uint64_t lines);
  bool post_overflow();

  const int me_;
  const std::vector<int> names_;
  Letter* lines_ = nullptr;  // of our outbox
  std::vector<const Cursor*> readers_;
  std::vector<Inbox> inboxes_;
  uint64_t secret_ = 0, at_ = 0, room_until_ = kLines;
  struct Waiting {
    Note note;
    std::vector<std::byte> payload;
  };
  std::deque<Waiting> overflow_;
};

}  // namespace ringdp
