// What the ways to compute CRC32C know of its polynomial. Bits are reflected: the lowest one is the highest power of x.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace ringdp::kernels {

inline constexpr uint32_t kCastagnoli = 0x82f63b78;

// a times x, modulo the polynomial.
constexpr uint32_t times_x(uint32_t a) { return a & 1 ? a >> 1 ^ kCastagnoli : a >> 1; }

constexpr uint32_t product(uint32_t a, uint32_t b) {
  uint32_t sum = 0;
  for (uint32_t power = uint32_t{1} << 31; power != 0; power >>= 1, b = times_x(b))
    if (a & power) sum ^= b;
  return sum;
}

// x to the power 8 * bytes: a checksum times this is that of the same data with so many zero bytes behind it.
constexpr uint32_t zeros(size_t bytes) {
  uint32_t result = uint32_t{1} << 31, square = uint32_t{1} << 23;  // 1, x^8
  for (; bytes != 0; bytes >>= 1, square = product(square, square))
    if (bytes & 1) result = product(result, square);
  return result;
}

// tables[k][b]: of the byte b with k zero bytes behind it.
template <size_t Bytes>
constexpr std::array<std::array<uint32_t, 256>, Bytes> byte_tables() {
  std::array<std::array<uint32_t, 256>, Bytes> tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (size_t k = 0; k < Bytes; ++k) {
      for (int bit = 0; bit < 8; ++bit) crc = times_x(crc);
      tables[k][byte] = crc;
    }
  }
  return tables;
}

// A product with a constant, byte by byte of the other factor.
class Multiplier {
 public:
  constexpr explicit Multiplier(uint32_t factor) : tables_{} {
    for (uint32_t byte = 0; byte < 256; ++byte)
      for (int k = 0; k < 4; ++k) tables_[k][byte] = product(factor, byte << 8 * k);
  }
  constexpr uint32_t operator()(uint32_t a) const {
    return tables_[0][a & 0xff] ^ tables_[1][a >> 8 & 0xff] ^ tables_[2][a >> 16 & 0xff] ^ tables_[3][a >> 24];
  }

 private:
  std::array<std::array<uint32_t, 256>, 4> tables_;
};

}  // namespace ringdp::kernels
