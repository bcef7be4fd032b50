// 64-bit digests of names, signatures and plans: FNV-1a, finished by the mixer of MurmurHash3.
#pragma once

#include <cstdint>
#include <string_view>

namespace ringdp {

class Digest {
 public:
  Digest& add(std::string_view bytes) {
    for (const char c : bytes) state_ = (state_ ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
    return add(uint64_t{bytes.size()});
  }
  Digest& add(uint64_t word) {
    for (int i = 0; i < 8; ++i, word >>= 8) state_ = (state_ ^ (word & 0xff)) * 0x100000001b3ull;
    return *this;
  }
  // Never 0 and never all ones: those mark "none" in messages.
  uint64_t value() const {
    uint64_t h = state_;
    h = (h ^ (h >> 33)) * 0xff51afd7ed558ccdull;
    h = (h ^ (h >> 33)) * 0xc4ceb9fe1a85ec53ull;
    h ^= h >> 33;
    return h == 0 || h == ~uint64_t{0} ? 1 : h;
  }

 private:
  uint64_t state_ = 0xcbf29ce484222325ull;
};

}  // namespace ringdp
