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

}  // namespace ringdp
