#include "submit/names.h"

#include <array>

#include "agree/digest.h"

namespace ringdp {

namespace {

std::array<Name, kUnnamedSlots> make_unnamed() {
  std::array<Name, kUnnamedSlots> names;
  for (int slot = 0; slot < kUnnamedSlots; ++slot) {
    names[slot].text = std::string(kReservedPrefix) + std::to_string(slot);
    names[slot].key = key_of(names[slot].text);
  }
  return names;
}

}  // namespace

uint64_t key_of(std::string_view name) { return Digest().add(name).value(); }

const Name& unnamed(int slot) {
  static const std::array<Name, kUnnamedSlots> names = make_unnamed();
  return names[slot];
}

uint64_t key_of(std::string_view name, uint64_t times) {
  return times == 0 ? key_of(name) : Digest().add(name).add(times).value();
}

Name unnamed_member(uint64_t call, int member) {
  const std::string& first = unnamed(static_cast<int>(call % kUnnamedSlots)).text;
  return {first + "." + std::to_string(member), Digest().add(kReservedPrefix).add(call).add(uint64_t(member)).value()};
}

}  // namespace ringdp
