// The identity of an operation: 64 bytes that travel to each neighbour before the operation's first segment.
//
// A receiver compares it with its own before it posts a receive for data and before it sends its own first data; so a
// rank that completes an all-reduce knows that every rank's header was right. Fixed layout, little endian: change
// kWireVersion with any change here.
#pragma once

#include <cstdint>
#include <string>

namespace ringdp {

struct Header {
  static constexpr uint16_t kWireVersion = 2;
  static constexpr uint16_t kMagic = 0x5244;  // "DR"
  enum Flags : uint8_t { kPoison = 1, kChecksum = 2, kOnGpu = 4 };

  uint16_t magic = kMagic;
  uint16_t version = kWireVersion;
  uint32_t generation = 0;
  uint32_t process_set = 0;
  int32_t root = -1;
  uint64_t digest = 0;    // of the name, or of the plan
  uint64_t sequence = 0;  // position in the lane; the low bits are in the tag too
  uint64_t count = 0;     // elements; of one row where ranks contribute different numbers of rows
  uint64_t scale = 0;     // digest of prescale and postscale
  uint32_t bucket = 0;    // of a plan
  uint32_t part = 0;      // 0 sizes, 1 data
  uint8_t kind = 0;
  uint8_t dtype = 0;
  uint8_t op = 0;
  uint8_t flags = 0;
  uint8_t half = 0;  // of an all-reduce
  uint8_t unused[3] = {};

  bool poisoned() const { return flags & kPoison; }
};
static_assert(sizeof(Header) == 64, "the header is 64 bytes on the wire");

// "" if both mean the same operation, otherwise what differs, in words ("count 10 here, 12 on rank 3").
std::string difference(const Header& mine, const Header& theirs, int their_rank);

}  // namespace ringdp
