// CRC32C by a CPU's own instruction, which the file that includes this names: RINGDP_CRC_WORD(crc, word) and
// RINGDP_CRC_BYTE(crc, byte). Its result comes after three cycles, and another can begin in each: so three parts of the data
// go side by side, and are put together by products with powers of x.
#include "kernels/crc32c_tables.h"

namespace ringdp::kernels {

namespace {

inline uint64_t word_at(const unsigned char* at) {
  uint64_t word;
  std::memcpy(&word, at, sizeof word);
  return word;
}

// `Part` is a multiple of 8. Advances `at` and `bytes` over all that is whole.
template <size_t Part>
uint32_t in_three_parts(const unsigned char*& at, size_t& bytes, uint32_t crc) {
  static constexpr Multiplier one_behind(zeros(Part)), two_behind(zeros(2 * Part));
  for (; bytes >= 3 * Part; bytes -= 3 * Part, at += 3 * Part) {
    uint64_t a = crc, b = 0, c = 0;
    for (size_t i = 0; i < Part; i += 8) {
      a = RINGDP_CRC_WORD(a, word_at(at + i));
      b = RINGDP_CRC_WORD(b, word_at(at + Part + i));
      c = RINGDP_CRC_WORD(c, word_at(at + 2 * Part + i));
    }
    crc = two_behind(static_cast<uint32_t>(a)) ^ one_behind(static_cast<uint32_t>(b)) ^ static_cast<uint32_t>(c);
  }
  return crc;
}

inline uint32_t by_instruction(const void* data, size_t bytes, uint32_t before) {
  auto* at = static_cast<const unsigned char*>(data);
  uint32_t crc = ~before;
  crc = in_three_parts<4096>(at, bytes, crc);
  crc = in_three_parts<256>(at, bytes, crc);
  for (; bytes >= 8; bytes -= 8, at += 8) crc = static_cast<uint32_t>(RINGDP_CRC_WORD(crc, word_at(at)));
  for (; bytes > 0; --bytes, ++at) crc = RINGDP_CRC_BYTE(crc, *at);
  return ~crc;
}

}  // namespace

}  // namespace ringdp::kernels
