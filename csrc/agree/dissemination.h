// All-reduce of a few words in ceil(log2 N) exchanges, for merges that may count a rank twice (AND, MIN, set union).
//
// In exchange s rank r sends what it has merged so far to r + 2^s and merges what comes from r - 2^s (mod N); after
// ceil(log2 N) exchanges every rank has merged every rank's words, some of them more than once, which an idempotent
// merge does not notice. Hensgen, Finkel & Manber, "Two algorithms for barrier synchronization", IJPP 17 (1988).
//
// One object runs many instances, one after another, all on one tag: every rank sends exactly one message per exchange
// and instance, and 2^s mod N differs for each s, so first-in first-out channels keep the instances apart.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "transport/transport.h"

namespace ringdp {

class Dissemination {
 public:
  using Words = std::vector<uint64_t>;
  using Merge = std::function<void(Words& mine, const Words& theirs)>;

  Dissemination(Transport& transport, int tag) : transport_(transport), tag_(tag) {}

  // Posts the first receive of the next instance, so that heard() can tell that another rank has entered it. All ranks
  // give the same number of words. enter() arms by itself if need be.
  void arm(size_t words);
  bool armed() const { return armed_; }
  bool heard();

  void enter(Words mine, Merge merge);
  bool running() const { return running_; }

  // Advances without blocking; true when the instance has ended (once): result() then holds until the next enter().
  bool progress();
  bool moved() const { return moved_; }  // did the last progress() get anywhere
  const Words& result() const { return mine_; }

  void cancel();  // takes the posted receive back; an instance that is running is given up

 private:
  void begin_exchange();
  int exchanges() const;

  Transport& transport_;
  const int tag_;
  Merge merge_;
  Words mine_, theirs_;
  std::vector<Words> outgoing_;  // one a exchange: a send reads its words until it is complete
  std::vector<Request> sends_;
  Request receive_;
  bool armed_ = false, received_ = false, running_ = false, moved_ = false;
  int exchange_ = 0;
};

}  // namespace ringdp
