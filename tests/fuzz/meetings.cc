// What ranks tell each other before anything is done: messages between hosts, letters within one.
//
// An input says what comes from the others, and when this rank does something. What the others send first is right.
#include <cstdint>
#include <memory>
#include <vector>

#include "agree/doubling.h"
#include "agree/letters.h"
#include "fuzz.h"
#include "transport/local.h"

using namespace ringdp;
using namespace ringdp::fuzz;

namespace {

constexpr int kMost = 400;  // events of an input

struct Envelope {
  uint32_t magic = 0x72647064, version = 2;
  Note note;
  uint32_t checksum = 0, unused = 0;
};

enum Event : uint8_t { told, come, poll, join, leave, events };

Note note_about(uint64_t key, uint32_t bytes, uint32_t topic = Meetings::named) {
  Note note;
  note.key = key, note.signature = 5, note.bytes = bytes, note.topic = topic;
  return note;
}

std::string event(uint8_t kind, uint8_t what, const std::string& bytes) {
  return bytes_of(kind) + bytes_of(what) + bytes_of(static_cast<uint16_t>(bytes.size())) + bytes;
}

// Both ranks come to two operations, one of them with data, and to a vote; then the other leaves.
std::vector<std::string> conversations(bool with_envelope) {
  const auto from_peer = [&](Note note) {
    const std::string payload(note.bytes, '\1');
    return event(told, 0, (with_envelope ? bytes_of(Envelope{0x72647064, 2, note, 0, 0}) : bytes_of(note)) + payload);
  };
  Note leaving = note_about(0, 0, Meetings::leaving), news = note_about(0, 0, Meetings::news),
       joined = note_about(1, 0);
  leaving.ticket = news.ticket = 1;
  leaving.signature = news.signature = 0;
  joined.flags = Note::kJoined | Note::kSilent;
  const std::string mine = event(come, 1, "") + event(come, 2, "") + event(poll, 0, "");
  const std::string theirs = from_peer(note_about(1, 0)) + from_peer(note_about(2, 16)) +
                             from_peer(note_about(0, 16, Meetings::vote)) + event(come, 0, "") + event(poll, 0, "");
  return {mine + theirs,
          mine + theirs + (with_envelope ? from_peer(news) : "") + from_peer(leaving) + event(poll, 0, "") +
              event(leave, 0, "") + event(poll, 0, ""),
          event(join, 0, "") + from_peer(note_about(1, 0)) + event(poll, 0, ""),
          event(come, 1, "") + from_peer(joined) + event(poll, 0, "")};
}

// Does what an input says with the meetings of one rank. tell(what, bytes): the others do.
template <class Tell>
void go_through(const std::string& input, Meetings& meetings, const Tell& tell) {
  meetings.draw_ticket = [next = uint64_t{0}]() mutable { return next++; };
  Input in(input);
  bool here[256] = {}, has_joined = false, has_left = false;
  const std::vector<std::byte> payload(16);
  for (int n = 0; n < kMost && !in.is_over(); ++n) {
    const auto kind = in.take<uint8_t>() % events;
    const auto what = in.take<uint8_t>();
    const std::string bytes = in.take(in.take<uint16_t>());
    if (kind == told) tell(what, bytes);
    if (kind == come && !here[what] && !has_left && !has_joined) {
      here[what] = true;
      const bool is_vote = what == 0, has_data = is_vote || what % 2 == 0;
      meetings.come(note_about(what, has_data ? 16 : 0, is_vote ? Meetings::vote : Meetings::named), payload.data(),
                    what);
    }
    if (kind == join && !has_joined && !has_left) has_joined = true, meetings.join();
    if (kind == leave && !has_left) has_left = true, meetings.leave();
    meetings.poll();
    while (Meetings::Meeting* meeting = meetings.next_complete()) {
      if (!meeting->for_nobody) here[meeting->token & 255] = false;
      if (meeting->agreed && !meeting->joined && meeting->from.empty() && meeting->merged.size() != meeting->mine.bytes)
        throw std::logic_error("data of another length are agreed on");
      meetings.close(*meeting);
    }
  }
}

// --- between hosts ---------------------------------------------------------------------------------------------------

std::vector<std::string> messages() { return conversations(true); }

void merge(const Meetings::Meeting& meeting, std::byte* mine, const std::byte* theirs, bool) {
  for (uint32_t i = 0; i < meeting.mine.bytes; ++i) mine[i] ^= theirs[i];
}

// Rank 0 of so many: with three it hands over to rank 1, and hears results.
void messages_to(int ranks, int rank, const std::string& input) {
  const auto hub = make_local_hub(ranks, 0);
  std::vector<std::unique_ptr<Transport>> transports;
  for (int r = 0; r < ranks; ++r) transports.push_back(make_local_transport(hub, r));
  std::deque<std::string> sent;  // they live as long as the hub
  std::vector<Request> requests;
  Doubling doubling(*transports[static_cast<size_t>(rank)], 0, false, merge);
  go_through(input, doubling, [&](uint8_t from, const std::string& bytes) {
    const int sender = (rank + 1 + from % (ranks - 1)) % ranks;
    sent.push_back(bytes);
    requests.push_back(transports[static_cast<size_t>(sender)]->send(rank, 0, sent.back().data(), sent.back().size()));
  });
  doubling.cancel();
}

FUZZ(messages_between_two, messages) { messages_to(2, 0, input); }
FUZZ(messages_to_a_rank_that_hands_over, messages) { messages_to(3, 0, input); }
FUZZ(messages_to_a_rank_that_stands_in, messages) { messages_to(3, 1, input); }

// --- within a host ---------------------------------------------------------------------------------------------------

std::vector<std::string> letters() { return conversations(false); }

// The other's outbox: what comes is laid there as a letter with the stamp that is looked for.
FUZZ(letters_in_a_host, letters) {
  constexpr int kRanks = 2;
  constexpr uint64_t kSecret = 77;
  static const auto host = std::make_shared<Host>(0, std::make_shared<Heap>(HeapKind::memfd));
  static const std::vector<uint64_t> mail = {Mail::make(host->heap(), kRanks), Mail::make(host->heap(), kRanks)};
  std::vector<std::byte*> parts;
  for (const uint64_t offset : mail) {
    parts.push_back(host->heap().at(offset));
    Mail::prepare(parts.back(), kRanks, kSecret);
  }
  Letters letters(host, {0, 1}, {0, 0}, 0, parts);  // both live here: who rings rings this rank
  const uint64_t lines = (Mail::part_bytes(kRanks) - 64 * (1 + kRanks)) / sizeof(Letter);
  auto* const outbox = reinterpret_cast<Letter*>(parts[1] + 64 * (1 + kRanks));
  uint64_t at = 0;
  go_through(input, letters, [&](uint8_t, const std::string& bytes) {
    Letter& line = outbox[at % lines];
    const Note note = Input(bytes).take<Note>();
    static_cast<Note&>(line) = note;
    const std::string payload = bytes.size() > sizeof note ? bytes.substr(sizeof note) : "";
    const uint64_t taken = note.flags & Note::kGap         ? note.ticket
                           : note.bytes <= Letter::kInLine ? 1
                                                           : 1 + (uint64_t{note.bytes} + 63) / 64;
    auto* to = note.bytes <= Letter::kInLine ? line.in_line : reinterpret_cast<std::byte*>(&line + 1);
    const size_t room = note.bytes <= Letter::kInLine ? Letter::kInLine : (lines - at % lines - 1) * 64;
    std::memcpy(to, payload.data(), std::min(payload.size(), room));
    line.stamp.store(at + kSecret, std::memory_order_release);
    at += taken;
  });
}

}  // namespace
