// Executes the schedules of one collective in virtual time over a described cluster: how long it would take there.
// collectives/run.h carries out the same schedules for real, collectives/simulate.h proves them right; this one only
// keeps time and moves no data.
//
// What takes time
//   a message       leaves through the sender's link and enters through the receiver's, `bytes / bandwidth` on each,
//                   the second `latency` behind the first; each link serves one message after the other, each way on
//                   its own. Between hosts the link is the host's, shared by its ranks; inside, each rank has its own.
//   a large message (above `eager`) asks first and leaves when its receive is posted: two more latencies, overlapped
//                   with the messages before it (rendezvous)
//   arithmetic      and `per_message` occupy the rank, one after the other, the earliest move of the list first; if
//                   `cores` is given, so many ranks of a host can do so at once
// The rules of the executor hold: a move waits for those it names in `after`; each channel is first in, first out, with
// 16 messages posted ahead; no data leaves before the headers of all who send to this rank are there.
//
// Symmetry. Where all ranks do the same, one stands for all of them: what it sends to its successor it receives from
// its predecessor, at the same time. With `period` P the ranks 0 … P-1 are executed and rank r is taken to be rank
// r mod P, for rotations (rank + d: rings) and for exchanges (rank xor d: recursive doubling) alike. This is exact, not
// an approximation, and refused where the schedules are not symmetric.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "collectives/schedule.h"

namespace ringdp::timing {

struct Link {
  double latency = 0;                                          // seconds
  double bandwidth = std::numeric_limits<double>::infinity();  // bytes a second, each way
};

struct Cluster {
  int ranks_per_host = 1;  // rank r lies on host r / ranks_per_host
  Link inside, between;
  bool inside_by_rank = false;  // the receiving rank copies what comes from its own host, at `inside.bandwidth`
  double arithmetic = std::numeric_limits<double>::infinity();  // bytes of result a second: reduce, copy, finish
  double per_message = 0;                                       // seconds of the rank for each message, on either side
  double eager = 0;                                             // bytes
  int cores = 0;                                                // per host; 0: one for each rank
  double jitter = 0;  // seconds: mean of what each message is late, exponential; not with a period below ranks
  uint64_t seed = 0;
};

struct Times {
  std::vector<double> finished;  // seconds, by rank
  uint64_t messages = 0;         // of the ranks that were executed
  double bytes_between = 0;      // that they sent to other hosts
};

// Times of `ranks` ranks, the first `period` of which are executed. schedule_of(r) is called for these, and for the
// last period to check the symmetry. ready[r]: seconds at which rank r begins; empty: all at 0.
Times execute(int ranks, int period, const std::function<Schedule(int)>& schedule_of, double element_bytes,
              const Cluster& cluster, const std::vector<double>& ready);

}  // namespace ringdp::timing
