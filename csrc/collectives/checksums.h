// The checksums of a run's segments (CRC32C), on each of its channels.
//
// The order on a channel that is checked is
//
//     header · segment · … · segment · checksums · segment · … · segment · checksums
//
// with as many checksums in a message as segments have gone before it since the last one, kMost at most. Segments lie in the
// caller's memory, so nothing can be put behind one without a copy; a message for each would be as many messages again.
// A segment may be summed and sent on before its checksum has come: until the run is over on all ranks, and each has told
// the others that nothing was damaged (engine/damage.cc), no output is called good.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "transport/transport.h"

namespace ringdp {

// What was found to be damaged between two ranks. It travels, in a meeting's payload.
struct Damage {
  static constexpr uint64_t kNowhere = ~uint64_t{0};

  int32_t from = -1, to = -1;              // ranks of the process set; -1: nothing was
  uint64_t segment = 0, segments = 0;      // the k-th of all on this channel
  uint64_t element = kNowhere, count = 0;  // of the output; kNowhere: it lies elsewhere

  explicit operator bool() const { return to >= 0; }
  bool operator<(const Damage& other) const;  // which of several is told: the same on all ranks
  std::string text(const Transport& names) const;
};
static_assert(sizeof(Damage) == 40, "it travels");

class Checksums {
 public:
  static constexpr size_t kMost = 1024;  // in a message: 56 MiB of segments

  // Of a channel with so many segments.
  explicit Checksums(size_t segments) : segments_(segments) {}

  void add(const void* segment, size_t bytes);
  bool is_full(size_t segment) const { return (segment + 1) % kMost == 0 || segment + 1 == segments_; }

  // The message with the next ones: of what was added since the last, or those that the other rank has told of that.
  struct Message {
    uint32_t* data;
    size_t bytes;
  };
  Message next_to_send();
  Message next_to_receive();
  size_t bytes_of_next() const { return sizeof(uint32_t) * size_of(compared_); }
  // Of the message that has come: the first segment that is not what it was.
  std::optional<size_t> compare();

 private:
  size_t size_of(size_t begin) const;

  const size_t segments_;
  std::vector<uint32_t> added_, told_;
  size_t messages_at_ = 0, compared_ = 0;  // segments
};

}  // namespace ringdp
