// CRC32C, the checksum of what travels between ranks: the polynomial of Castagnoli (IEEE Transactions on Communications
// 41(6), 1993), as iSCSI (RFC 3720, appendix B.4) and ext4 use it. CPUs have an instruction for it. It finds every burst of
// up to 32 bits, and any 3 flipped bits in a segment of ours.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ringdp::kernels {

// Of `bytes` bytes at `data`, going on from the checksum of what comes before them. An address needs no alignment.
uint32_t crc32c(const void* data, size_t bytes, uint32_t before = 0);

// Every way of this build to compute it, the fastest first; all give the same.
struct Crc32c {
  const char* name;
  bool (*runs_here)();
  uint32_t (*function)(const void* data, size_t bytes, uint32_t before);
};
extern const Crc32c kCrc32c[];
extern const size_t kCrc32cs;

}  // namespace ringdp::kernels
