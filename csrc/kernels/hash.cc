#include "kernels/hash.h"

#include <cstring>

namespace ringdp::kernels {
namespace {

constexpr uint64_t kPrimes[] = {0x9e3779b185ebca87, 0xc2b2ae3d27d4eb4f, 0x165667b19e3779f9, 0x85ebca77c2b2ae63,
                                0x27d4eb2f165667c5};
constexpr size_t kLanes = 4, kStripe = kLanes * sizeof(uint64_t);

uint64_t rotated(uint64_t x, int left) { return x << left | x >> (64 - left); }

// Both machines that ringdp runs on are little endian, as the specification reads words.
template <class Word>
Word word_at(const unsigned char* at) {
  Word word;
  std::memcpy(&word, at, sizeof word);
  return word;
}

uint64_t round(uint64_t lane, uint64_t word) { return rotated(lane + word * kPrimes[1], 31) * kPrimes[0]; }

uint64_t of_lanes(const uint64_t* lanes) {
  uint64_t h = rotated(lanes[0], 1) + rotated(lanes[1], 7) + rotated(lanes[2], 12) + rotated(lanes[3], 18);
  for (size_t i = 0; i < kLanes; ++i) h = (h ^ round(0, lanes[i])) * kPrimes[0] + kPrimes[3];
  return h;
}

// What does not fill a stripe.
uint64_t with_rest(uint64_t h, const unsigned char* at, const unsigned char* end) {
  for (; end - at >= 8; at += 8) h = rotated(h ^ round(0, word_at<uint64_t>(at)), 27) * kPrimes[0] + kPrimes[3];
  if (end - at >= 4) {
    h = rotated(h ^ word_at<uint32_t>(at) * kPrimes[0], 23) * kPrimes[1] + kPrimes[2];
    at += 4;
  }
  for (; at < end; ++at) h = rotated(h ^ *at * kPrimes[4], 11) * kPrimes[0];
  return h;
}

uint64_t mixed(uint64_t h) {
  h = (h ^ h >> 33) * kPrimes[1];
  h = (h ^ h >> 29) * kPrimes[2];
  return h ^ h >> 32;
}

}  // namespace

uint64_t hash(const void* from, size_t bytes, uint64_t seed) {
  auto* at = static_cast<const unsigned char*>(from);
  const unsigned char* const end = at + bytes;
  uint64_t h = seed + kPrimes[4];
  if (bytes >= kStripe) {
    uint64_t lanes[kLanes] = {seed + kPrimes[0] + kPrimes[1], seed + kPrimes[1], seed, seed - kPrimes[0]};
    for (; static_cast<size_t>(end - at) >= kStripe; at += kStripe)
      for (size_t i = 0; i < kLanes; ++i) lanes[i] = round(lanes[i], word_at<uint64_t>(at + 8 * i));
    h = of_lanes(lanes);
  }
  return mixed(with_rest(h + bytes, at, end));
}

}  // namespace ringdp::kernels
