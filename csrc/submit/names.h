// The names of operations: those of unnamed calls, and those that are in flight on this rank.
//
// Unnamed calls are matched by their order: the k-th of each rank with the k-th of all others. Their names repeat after so
// many calls, and are made once; a call whose predecessor in the slot is still in flight waits for it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_set>

namespace ringdp {

constexpr int kUnnamedSlots = 64;
constexpr std::string_view kReservedPrefix = "unnamed.";

struct Name {
  std::string text;
  uint64_t key;  // its digest: what ranks tell each other instead of the text
};

uint64_t key_of(std::string_view name);
const Name& unnamed(int slot);
inline bool is_reserved(std::string_view name) { return name.substr(0, kReservedPrefix.size()) == kReservedPrefix; }

// By key: names that ranks cannot tell apart must not be in flight at a time.
class NamesInFlight {
 public:
  bool add(int process_set, uint64_t key) { return keys_.insert(key + static_cast<uint64_t>(process_set)).second; }
  void remove(int process_set, uint64_t key) { keys_.erase(key + static_cast<uint64_t>(process_set)); }
  void clear() { keys_.clear(); }

 private:
  std::unordered_set<uint64_t> keys_;
};

}  // namespace ringdp
