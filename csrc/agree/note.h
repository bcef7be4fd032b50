// What a rank tells others when it comes to a meeting (agree/meetings.h), beside the payload: the same in a letter
// (shared/mail.h) and in a message (agree/doubling.h).
#pragma once

#include <cstdint>

namespace ringdp {

struct Note {
  enum Flags : uint32_t {
    kGap = 1,      // in an outbox: no letter, only the end of the ring
    kPoison = 2,   // some rank means something else
    kLeft = 4,     // a rank that has left is among them: it is `ticket`
    kJoined = 8,   // a rank that has joined is among them
    kSilent = 16,  // there are no others so far: it has no signature
    kAwaits = 32,  // ranks that have joined come to it as all others do
  };
  static constexpr uint64_t kNoTicket = ~uint64_t{0};

  uint64_t key = 0;
  uint64_t signature = 0;  // digest of all that must be the same on every rank; as one leaves, the steps it has taken
  uint64_t ticket = kNoTicket;   // the first rank's: the place of an operation in the order
  uint32_t lane = 0, topic = 0;  // with the key: what it is about; of named operations, lane is the era
  uint32_t flags = 0;
  uint32_t bytes = 0;  // of the payload
};
static_assert(sizeof(Note) == 40, "a note is 40 bytes on the wire");

// The signature of what ranks of one generation mean: it is another one in each, as in headers.
constexpr uint64_t in_generation(uint32_t generation, uint64_t signature) {
  return signature ^ uint64_t{generation} << 32;
}

}  // namespace ringdp
