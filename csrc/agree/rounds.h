// How the ranks of a process set agree which named operation runs next, though each submits in its own order.
//
// This is the protocol alone: no thread, no transport. It goes through *instances*; each rank enters an instance with
// some words (contribution), the words of all ranks are merged, and each rank completes the instance with the same
// merged words. A rank enters when its pending set has changed, or when another rank has entered. Three kinds of
// instance:
//
//   round       for each known name: is it pending here (AND), has it the agreed signature (AND), is it idle here (AND);
//               and: nothing new here (AND), leaving (AND), the lowest rank that leaves (MIN). What is pending
//               everywhere runs now, in the order of ids; where a signature is not agreed, a `signatures` instance
//               comes first.
//   names       follows a round in which some rank had a new name: the smallest digests (up to 32) of new names over
//               all ranks (set union) get ids. No rank collects a table from all others.
//   signatures  for each name that is pending everywhere with an open signature: digest and complement (MIN), equal iff
//               all ranks mean the same. If not, the operation fails on every rank before any data has moved.
//
// Every rank sees the same merged words, so every rank keeps the same table of ids and runs the same operations in the
// same order. docs/architecture.md says why this cannot deadlock; tests/unit explores all interleavings of a small
// case.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

namespace ringdp {

class Rounds {
 public:
  using Words = std::vector<uint64_t>;
  using Token = uint64_t;  // the caller's name for a submission

  struct Decision {
    enum Kind { run, mismatch, peer_left } kind;
    Token token;
    uint64_t sequence;  // run, mismatch: position in the order of named operations, the same on all ranks
  };

  // names_kept: ids of names that no rank has pending are reused beyond so many, the least recently used first.
  // names_at_once: new names that one names instance can hold.
  Rounds(int rank, int size, size_t names_kept = 1024, size_t names_at_once = 32)
      : rank_(rank), size_(size), names_kept_(names_kept), names_at_once_(names_at_once) {}

  // The name must not be pending here already.
  void submit(uint64_t name, uint64_t signature, Token token);
  // From the next round on this rank submits nothing more; what is pending is forgotten. Only between rounds: not while
  // an instance is running, nor before a names or signatures instance.
  void leave();
  bool between_rounds() const { return instance_ == Instance::round; }

  bool wants_to_enter() const { return changed_ || follows_; }
  bool pending() const { return !pending_.empty(); }
  bool closed() const { return closed_; }       // every rank has left
  int left_rank() const { return left_rank_; }  // the lowest rank that has left, or -1

  size_t words() const;  // of the current instance, the same on all ranks
  Words contribution();  // this rank enters
  void merge(Words& mine, const Words& theirs) const;
  std::vector<Decision> complete(const Words& merged);

  // For tests that explore states: the part that is the same on all ranks after the same number of instances, and all.
  Words shared_state() const;
  Words fingerprint() const;

 private:
  friend class BrokenRounds;  // agree/explore.cc: takes a rule out, to see that the exploration notices
  enum class Instance { round, names, signatures };
  static constexpr uint64_t kNone = ~uint64_t{0};
  enum Flags : uint64_t { kNothingNew = 1, kLeaving = 2 };

  struct Id {
    uint64_t name = 0;       // 0: free
    uint64_t signature = 0;  // 0: none agreed
    uint64_t last_used = 0;
    bool idle = false;  // in the last round no rank had it pending
  };
  struct Pending {
    uint64_t signature;
    Token token;
    int id;  // -1: new
  };

  size_t bit_words() const { return (ids_.size() + 63) / 64; }
  Words round_words() const;
  Words names_words() const;
  Words signature_words() const;
  std::vector<Decision> complete_round(const Words& merged);
  void complete_names(const Words& merged);
  std::vector<Decision> complete_signatures(const Words& merged);
  void next_instance();
  int assign_id(uint64_t name);
  int find_free_id();
  Decision take(int id, Decision::Kind kind);

  const int rank_, size_;
  const size_t names_kept_, names_at_once_;
  Instance instance_ = Instance::round;
  std::vector<Id> ids_;
  std::map<uint64_t, Pending> pending_;  // by name
  std::vector<int> to_compare_;          // ids for the next signatures instance
  uint64_t sequence_ = 0, clock_ = 0;
  bool changed_ = false;  // the pending set, since this rank last entered a round
  bool follows_ = false;  // a names or signatures instance, which every rank enters at once
  bool leaving_ = false, closed_ = false, names_follow_ = false;
  int left_rank_ = -1;
};

}  // namespace ringdp
