// The names of operations: those of unnamed calls, and those that are in flight on this rank.
//
// Unnamed calls are matched by their order: the k-th of each rank with the k-th of all others. Their names repeat after so
// many calls, and are made once; a call whose predecessor in the slot is still in flight waits for it.
//
// A group is one of these calls, however many members it has: where ranks differ in that, those after it still meet. Its
// first member has the name of the call. The others have keys that never repeat: what has waited for a member that another
// rank's group lacks must not meet one of a later group. Those of a group with a name have others, for the same reason, once
// the ranks have differed in a group of that name: all ranks have heard of it as often.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
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
Name unnamed_member(uint64_t call, int member);          // above 0, of a group
uint64_t key_of(std::string_view name, uint64_t times);  // of a member above 0, whose group has differed so often
inline bool is_reserved(std::string_view name) { return name.substr(0, kReservedPrefix.size()) == kReservedPrefix; }

// By key: names that ranks cannot tell apart must not be in flight at a time.
class NamesInFlight {
 public:
  bool add(int process_set, uint64_t key) { return keys_.insert(key + static_cast<uint64_t>(process_set)).second; }
  void remove(int process_set, uint64_t key) { keys_.erase(key + static_cast<uint64_t>(process_set)); }
  void clear() { keys_.clear(); }

  // `first`: the key of a group's first member.
  void group_differed(int process_set, uint64_t first) { ++differed_[first + static_cast<uint64_t>(process_set)]; }
  uint64_t times_differed(int process_set, std::string_view first) const {
    if (differed_.empty()) return 0;
    const auto found = differed_.find(key_of(first) + static_cast<uint64_t>(process_set));
    return found == differed_.end() ? 0 : found->second;
  }

 private:
  std::unordered_set<uint64_t> keys_;
  std::unordered_map<uint64_t, uint64_t> differed_;
};

}  // namespace ringdp
