// Which way runs, and the one that any CPU can go: by tables, eight bytes at a time.
#include "kernels/crc32c.h"

#include <cstring>

#include "base/check.h"
#include "kernels/crc32c_tables.h"
#include "kernels/simd.h"

#if RINGDP_AARCH64
#include <sys/auxv.h>
#ifndef HWCAP_CRC32
#define HWCAP_CRC32 (1 << 7)
#endif
#endif

namespace ringdp::kernels {

#if RINGDP_X86_64
uint32_t crc32c_sse42(const void* data, size_t bytes, uint32_t before);
#elif RINGDP_AARCH64
uint32_t crc32c_arm(const void* data, size_t bytes, uint32_t before);
#endif

namespace {

constexpr auto kTables = byte_tables<8>();

uint64_t word_at(const unsigned char* at) {  // little endian, on any machine
  uint64_t word = 0;
  for (int i = 0; i < 8; ++i) word |= uint64_t{at[i]} << 8 * i;
  return word;
}

uint32_t by_tables(const void* data, size_t bytes, uint32_t before) {
  auto* at = static_cast<const unsigned char*>(data);
  uint32_t crc = ~before;
  for (; bytes >= 8; bytes -= 8, at += 8) {
    const uint64_t word = word_at(at) ^ crc;
    crc = 0;
    for (int i = 0; i < 8; ++i) crc ^= kTables[7 - i][word >> 8 * i & 0xff];
  }
  for (; bytes > 0; --bytes, ++at) crc = crc >> 8 ^ kTables[0][(crc ^ *at) & 0xff];
  return ~crc;
}

#if RINGDP_X86_64
bool cpu_has_crc32c() { return __builtin_cpu_supports("sse4.2"); }
#elif RINGDP_AARCH64
bool cpu_has_crc32c() { return getauxval(AT_HWCAP) & HWCAP_CRC32; }
#endif

}  // namespace

const Crc32c kCrc32c[] = {
#if RINGDP_X86_64
    {"sse4.2", cpu_has_crc32c, crc32c_sse42},
#elif RINGDP_AARCH64
    {"arm", cpu_has_crc32c, crc32c_arm},
#endif
    {"tables", always, by_tables},
};
const size_t kCrc32cs = sizeof kCrc32c / sizeof kCrc32c[0];

uint32_t crc32c(const void* data, size_t bytes, uint32_t before) {
  static const auto best = [] {
    for (const Crc32c& one : kCrc32c)
      if (one.runs_here()) return one.function;
    fail(ErrorKind::internal, "no way to compute checksums runs here");  // that by tables always does
  }();
  return best(data, bytes, before);
}

}  // namespace ringdp::kernels
