#include "collectives/checksums.h"

#include <algorithm>
#include <sstream>
#include <tuple>

#include "kernels/crc32c.h"

namespace ringdp {

bool Damage::operator<(const Damage& other) const {
  const auto key = [](const Damage& d) { return std::tuple(!d, d.to, d.from, d.segment); };
  return key(*this) < key(other);
}

std::string Damage::text(const Transport& names) const {
  std::ostringstream out;
  out << "a message from rank " << names.name_of(from) << " to rank " << names.name_of(to)
      << " was damaged on its way: segment " << segment << " of the " << segments << " that go there";
  if (element != kNowhere) out << ", elements [" << element << ", " << element + count << ") of the output";
  out << ", has another checksum than when it was sent";
  return out.str();
}

void Checksums::add(const void* segment, size_t bytes) {
  if (added_.empty()) added_.reserve(segments_);  // what is sent of it must stay where it is
  added_.push_back(kernels::crc32c(segment, bytes));
}

size_t Checksums::size_of(size_t begin) const { return std::min(kMost, segments_ - begin); }

Checksums::Message Checksums::next_to_send() {
  const size_t begin = messages_at_, size = size_of(begin);
  messages_at_ += size;
  return {added_.data() + begin, size * sizeof(uint32_t)};
}

Checksums::Message Checksums::next_to_receive() {
  told_.resize(segments_);
  const size_t begin = messages_at_, size = size_of(begin);
  messages_at_ += size;
  return {told_.data() + begin, size * sizeof(uint32_t)};
}

std::optional<size_t> Checksums::compare() {
  const size_t begin = compared_, end = begin + size_of(begin);
  compared_ = end;
  for (size_t i = begin; i < end; ++i)
    if (added_[i] != told_[i]) return i;
  return std::nullopt;
}

}  // namespace ringdp
