// What can be seen of the ranks of this host from outside, while somebody waits: who has come to the operation that is waited
// for, and what becomes of those who have not.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "guard/flight.h"

namespace ringdp {

// What is waited for. It travels between hosts as it is.
struct Question {
  uint64_t key = 0;       // of a named operation
  uint64_t sequence = 0;  // of a bucket or a vote
  int32_t process_set = 0, lane = 0;
  uint8_t kind = 0;
  uint8_t unused[7] = {};
};

// What is known of a rank. It travels between hosts as it is.
struct Seen {
  enum Kind : uint8_t { come, computing, waiting, left, stopped, dead, unreachable, stuck };

  int32_t rank = -1, pid = 0;
  Kind kind = unreachable;
  char state = 0;      // of its process, in the kernel's letters
  int16_t signal = 0;  // that ended it, if it could say so
  float idle = 0;      // seconds since it has come to anything
  float patience = 0;  // seconds for which others may have to wait for it, as its user has said
  int64_t step = 0;
  Question waits_for;  // of one that waits for something else: the oldest of it
  char host[64] = {};
  char doing[160] = {};   // in words
  char stack[1024] = {};  // of its Python threads, where it was asked for and answered

  bool is_gone() const { return kind == stopped || kind == dead || kind == unreachable || kind == stuck; }
  bool is_culprit() const { return kind != come; }
};

// What a rank's recorder and the kernel say. `looker` is the process that looks: it is alive.
Seen look_at(const FlightHead& head, const FlightRecord* records, const Question& question);

// "rank 2 (host n1, process 4711) is stopped (state T): …": one line for people.
std::string in_words(const Seen& seen);
std::string in_words(const std::vector<Seen>& all);  // the ranks of a host that does not answer are named together

// Lets a process write the stacks of its Python threads; what it has written since, a while later.
void ask_for_stack(const FlightHead& head);
std::string stack_since(const FlightHead& head, uint64_t bytes_before);
uint64_t stack_bytes(const FlightHead& head);

}  // namespace ringdp
