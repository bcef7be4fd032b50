#include "mutate.h"

#include <algorithm>
#include <cstring>
#include <random>

namespace ringdp::fuzz {

namespace {

// What lengths, numbers and flags go wrong at.
constexpr uint64_t kNumbers[] = {0,
                                 1,
                                 2,
                                 7,
                                 8,
                                 16,
                                 40,
                                 63,
                                 64,
                                 127,
                                 128,
                                 255,
                                 256,
                                 4095,
                                 4096,
                                 32768,
                                 32769,
                                 65535,
                                 65536,
                                 uint64_t{1} << 20,
                                 0x7fffffff,
                                 0x80000000,
                                 0xffffffff,
                                 uint64_t{1} << 32,
                                 uint64_t{1} << 40,
                                 (uint64_t{1} << 61) + 1,
                                 0x7fffffffffffffff,
                                 0x8000000000000000,
                                 ~uint64_t{0} - 1,
                                 ~uint64_t{0}};
const char* const kWords[] = {
    "-1", "0", "1e999", "nan", "inf", "0x10", "=", "#", ":", ",", "\n", " ", "99999999999999999999"};

class Mutation {
 public:
  Mutation(const std::vector<std::string>& corpus, uint64_t number)
      : corpus_(corpus), random_(number * 0x9e3779b97f4a7c15ull + 1) {}

  std::string result() {
    if (below(20) == 0) return noise(below(200));
    text_ = any();
    for (uint64_t changes = 1 + below(6); changes > 0; --changes) change();
    return text_;
  }

 private:
  uint64_t below(uint64_t end) { return end == 0 ? 0 : random_() % end; }
  const std::string& any() { return corpus_[below(corpus_.size())]; }
  size_t place() { return below(text_.size() + 1); }

  std::string noise(size_t length) {
    std::string bytes(length, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random_());
    return bytes;
  }

  void change() {
    const size_t at = place(), left = text_.size() - at, few = std::min<size_t>(left, 1 + below(16));
    switch (below(9)) {
      case 0:  // a bit
        if (left > 0) text_[at] = static_cast<char>(text_[at] ^ (1 << below(8)));
        return;
      case 1:  // a byte
        if (left > 0) text_[at] = static_cast<char>(random_());
        return;
      case 2:
      case 3: {  // a number, mostly where numbers lie
        const size_t bytes = size_t{1} << below(4), aligned = below(4) ? at / bytes * bytes : at;
        const uint64_t number = kNumbers[below(std::size(kNumbers))];
        if (aligned + bytes <= text_.size()) std::memcpy(&text_[aligned], &number, bytes);
        return;
      }
      case 4:
        text_.erase(at, few);
        return;
      case 5:
        text_.insert(at, noise(1 + below(16)));
        return;
      case 6:
        text_.insert(place(), text_.substr(at, few));
        return;
      case 7:
        text_.insert(at, kWords[below(std::size(kWords))]);
        return;
      default: {  // the end of another
        const std::string& other = any();
        text_ = text_.substr(0, at) + other.substr(below(other.size() + 1));
      }
    }
  }

  const std::vector<std::string>& corpus_;
  std::mt19937_64 random_;
  std::string text_;
};

}  // namespace

std::string mutated(const std::vector<std::string>& corpus, uint64_t number) {
  if (number < corpus.size()) return corpus[number];
  return Mutation(corpus, number).result();
}

}  // namespace ringdp::fuzz
