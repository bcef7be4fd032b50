// Checksums: every way to compute one gives the same, and that of the standard.
#include "kernels/crc32c.h"

#include <cstring>
#include <string>
#include <vector>

#include "check.h"

using namespace ringdp;
using kernels::crc32c;
using kernels::Crc32c;

namespace {

using Bytes = std::vector<unsigned char>;

// As the standard says it, bit by bit.
uint32_t by_bits(const unsigned char* data, size_t bytes, uint32_t before = 0) {
  uint32_t crc = ~before;
  for (size_t i = 0; i < bytes; ++i) {
    crc ^= data[i];
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
  }
  return ~crc;
}

Bytes scrambled(size_t bytes) {
  Bytes data(bytes);
  uint32_t state = 1;
  for (unsigned char& byte : data) state = state * 1664525 + 1013904223, byte = static_cast<unsigned char>(state >> 24);
  return data;
}

template <class Act>
void for_each_way(const Act& act) {
  size_t ways = 0;
  for (size_t i = 0; i < kernels::kCrc32cs; ++i)
    if (const Crc32c& way = kernels::kCrc32c[i]; way.runs_here()) act(way), ++ways;
  CHECK(ways > 0);
}

}  // namespace

TEST(checksums_are_those_of_the_standard) {
  Bytes ascending(32);
  for (size_t i = 0; i < 32; ++i) ascending[i] = static_cast<unsigned char>(i);
  const Bytes descending(ascending.rbegin(), ascending.rend());
  for_each_way([&](const Crc32c& way) {
    CHECK(way.function("123456789", 9, 0) == 0xe3069283u, way.name);
    CHECK(way.function("", 0, 0) == 0u, way.name);
    // RFC 3720, appendix B.4
    CHECK(way.function(Bytes(32, 0).data(), 32, 0) == 0x8a9136aau, way.name);
    CHECK(way.function(Bytes(32, 0xff).data(), 32, 0) == 0x62a8ab43u, way.name);
    CHECK(way.function(ascending.data(), 32, 0) == 0x46dd794eu, way.name);
    CHECK(way.function(descending.data(), 32, 0) == 0x113fdb5cu, way.name);
  });
  CHECK(crc32c("123456789", 9) == 0xe3069283u);
}

// Of all lengths up to some parts that go side by side, at all places of a word; and of segments as they are sent.
TEST(all_ways_to_a_checksum_give_the_same) {
  const Bytes data = scrambled(70000);
  const auto compare = [&](size_t at, size_t bytes) {
    const uint32_t wanted = by_bits(data.data() + at, bytes, 0x12345678);
    for_each_way([&](const Crc32c& way) {
      CHECK(way.function(data.data() + at, bytes, 0x12345678) == wanted, way.name, ": ", bytes, " bytes at ", at);
    });
  };
  for (size_t at = 0; at < 8; ++at) {
    for (size_t bytes = 0; bytes <= 1700; ++bytes) compare(at, bytes);
    for (const size_t bytes : {12287, 12288, 12289, 57343, 57344, 57345, 65536 + 1}) compare(at, bytes);
  }
}

TEST(a_checksum_goes_on_from_that_of_what_comes_before) {
  const Bytes data = scrambled(26000);
  for_each_way([&](const Crc32c& way) {
    const uint32_t whole = way.function(data.data(), data.size(), 0);
    for (size_t cut = 0; cut <= data.size(); cut += 1 + cut / 7)
      CHECK(way.function(data.data() + cut, data.size() - cut, way.function(data.data(), cut, 0)) == whole, way.name,
            ", cut at ", cut);
  });
}

TEST(a_flipped_bit_changes_a_checksum) {
  Bytes data = scrambled(997);
  const uint32_t before = crc32c(data.data(), data.size());
  for (size_t bit = 0; bit < 8 * data.size(); ++bit) {
    data[bit / 8] ^= static_cast<unsigned char>(1 << bit % 8);
    CHECK(crc32c(data.data(), data.size()) != before, "bit ", bit);
    data[bit / 8] ^= static_cast<unsigned char>(1 << bit % 8);
  }
}
