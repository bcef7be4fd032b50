// An algorithm is data: a pure function of (ranks, rank, counts, segment) returns the list of moves one rank
// makes. Nothing here sends or adds anything; collectives/run.h executes a schedule over a transport,
// collectives/simulate.h executes the schedules of all ranks in one thread in any order of arrival.
//
// Vocabulary: a tensor of `count` elements is cut into N *chunks*, chunk i owned by rank i; a chunk is cut into
// *segments*, the unit of pipelining. A *move* is one thing done to one segment. A move starts when the moves it
// names in `after` are done, and not before; there is no "step" of the algorithm as a whole.
//
// Order on the wire. For each pair of ranks the sends of the one, in the order of its list, meet the receives of the
// other, in the order of its list: the executor posts the sends to one peer in list order, and the receives from one
// peer in list order (a first-in first-out channel). A later send to the same peer waits for an earlier one to have
// been *posted*, never for it to be complete.
//
// Ranks of one host may share memory. Then a region can lie in another rank's output or *area* (staging memory that the
// ranks can all reach), and instead of messages there are tokens: each rank counts its progress in the operation where
// the others can see it. *signal* k says that all it has done so far is visible; *await* k waits until each of the others
// has said k or more. A rank's signals rise by one, and each names the one before it in `after`; its awaits end in the
// order of its list. There are two *lines* of such tokens, which know nothing of each other: what flows in and what flows out
// are not held up by one another. A rank ends with its last move, and from then on nobody else may touch its output or area.
//
// Memory. A move owns its regions from its start to its end: a send may read its region at any time between being
// posted and being complete, a receive may write at any time. So whoever writes a region that an earlier
// move sends or reads must name that move in `after`. tests/unit checks this by simulation.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "base/dtype.h"

namespace ringdp {

enum class Kind : uint8_t {
  send,     // from -> peer
  receive,  // peer -> to
  reduce,   // to = from op with
  copy,     // to = from, scaled by the operation's prescale factor if move.prescale
  finish,   // to = from, divided (average) and scaled (postscale): applied once to each fully reduced segment
  signal,   // count = k: what this rank has done up to here is visible to those that share memory with it
  await,    // count = k: all of those have come to signal k
};

constexpr bool is_arithmetic(Kind k) { return k == Kind::reduce || k == Kind::copy || k == Kind::finish; }
constexpr bool is_message(Kind k) { return k == Kind::send || k == Kind::receive; }

// Where a region lies. `input` is read only; in-place operations have input == output. `scratch` is the rank's own;
// `area` lies in shared memory.
enum class Place : uint8_t { input, output, scratch, area };

struct Region {
  static constexpr int32_t kOwn = -1;

  Place place = Place::input;
  int32_t owner = kOwn;  // whose output or area: a rank that shares memory with this one
  uint64_t offset = 0;   // in elements

  constexpr Region() = default;
  constexpr Region(Place where, uint64_t at, int32_t whose = kOwn) : place(where), owner(whose), offset(at) {}
};

struct Move {
  static constexpr int kAfter = 4, kLines = 2;

  Kind kind{};
  bool prescale = false;  // copy only
  uint8_t line = 0;       // signal, await
  int peer = -1;          // send, receive: rank within the process set
  uint64_t count = 0;     // elements, never 0; of a token its number
  Region to{}, from{}, with{};
  std::array<int32_t, kAfter> after{-1, -1, -1, -1};  // indices of earlier moves in the list; -1: none
};

struct Schedule {
  std::vector<Move> moves;
  uint64_t scratch = 0;  // elements of scratch memory needed
  uint64_t area = 0;     // elements of shared memory needed
};

// How one all-reduce, reduce-scatter, … is cut; affects speed only, never the order of addition.
struct Pipeline {
  uint64_t segment = 0;  // elements per segment, at least 1
  int depth = 8;         // receives in flight per rank; scratch is depth segments (reduce-scatter: 2 or 3 times that)
};

// What is done to the elements besides moving them.
struct Arithmetic {
  bool prescale = false;  // the input must be scaled before it is first sent or added
  bool finish = false;    // fully reduced segments must be divided or scaled
};

// Which half of an all-reduce in place. After the first, a rank's own chunk is reduced and finished, and the rest of its
// output is in between; the second begins with the own chunks, as they are then, and ends with all of them everywhere. Both one
// after the other send as much as the whole, and add in the same order.
enum class Half : uint8_t { both, reduce_scatter, all_gather };

// Chunk i of `count` elements over `ranks`: [begin, end). Sizes differ by at most one.
struct Chunk {
  uint64_t begin, end;
};
constexpr Chunk chunk_of(uint64_t count, int ranks, int i) {
  const uint64_t base = count / ranks, extra = count % ranks, k = static_cast<uint64_t>(i);
  const uint64_t begin = k * base + (k < extra ? k : extra);
  return {begin, begin + base + (k < extra ? 1 : 0)};
}

// --- the algorithms, one file each --------------------------------------------------------------------------
// All of them are valid for any ranks >= 1 (1: the copies and finishes alone, if any are needed) and any count >= 0.

// Ring all-reduce = ring reduce-scatter, then ring all-gather, each segment forwarded as soon as it is reduced.
// Patarasu & Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", JPDC 69 (2009).
// in_place says that input and output are the same memory.
Schedule ring_allreduce(int ranks, int rank, uint64_t count, Pipeline, Arithmetic, bool in_place);
// A half of it, in place. The own chunk is chunk `rank`.
Schedule ring_half(Half, int ranks, int rank, uint64_t count, Pipeline, Arithmetic);

// All-reduce of two or more ranks that share memory. `direct`: the outputs lie in shared memory, and it is in place: rank r sums chunk
// r of all outputs and writes it to all, so nothing is copied. `staged`: tensors that lie anywhere pass through the areas.
// Both add in the order of the ring, so all three give the same bits. Of a half the own chunk is chunk `rank`.
Schedule shared_allreduce_direct(int ranks, int rank, uint64_t count, Pipeline, Arithmetic, Half = Half::both);
Schedule shared_allreduce_staged(int ranks, int rank, uint64_t count, Pipeline, Arithmetic, Half = Half::both);
uint64_t shared_area(int ranks, uint64_t count, Pipeline);  // elements of each rank's area, if it is staged

// All-reduce of ranks on several hosts, as many on each, in two levels: the ranks of a host sum by one of the ways above (or
// by messages, where they share nothing), and chunk l of the hosts' sums goes by ring among those who are number l of
// their host. Segment by segment, so that the two levels overlap. Whichever way each host takes, the bits are the same. Of a
// half the own chunk is own_chunk() of levels.h.
struct Levels;
Schedule two_level_direct(const Levels&, uint64_t count, Pipeline, Arithmetic, Half = Half::both);
Schedule two_level_staged(const Levels&, uint64_t count, Pipeline, Arithmetic, Half = Half::both);
Schedule two_level_messages(const Levels&, uint64_t count, Pipeline, Arithmetic, Half = Half::both);
uint64_t two_level_area(const Levels&, uint64_t count, Pipeline);

// All-reduce by recursive doubling: the whole tensor in log2 N exchanges. Sums are formed as in halving_doubling.
Schedule recursive_doubling(int ranks, int rank, uint64_t count, Pipeline, Arithmetic, bool in_place);

// All-reduce by recursive halving (reduce-scatter) and doubling (all-gather): Rabenseifner, ICCS 2004.
Schedule halving_doubling(int ranks, int rank, uint64_t count, Pipeline, Arithmetic, bool in_place);
// A half of it, in place, for a power of two of ranks; and the own chunk.
Schedule halving_doubling_half(Half, int ranks, int rank, uint64_t count, Pipeline, Arithmetic);
Chunk halving_doubling_chunk(int ranks, int rank, uint64_t count);

// All-reduce up and down two pipelined binary trees, each with one half of the tensor: Sanders, Speck & Träff (2009).
Schedule double_tree(int ranks, int rank, uint64_t count, Pipeline, Arithmetic, bool in_place);

// Reduce-scatter by ring with given chunk sizes: rank i ends with the reduced chunk i in output[0, counts[i]).
// The input is left untouched.
Schedule ring_reduce_scatter(int rank, const std::vector<uint64_t>& counts, Pipeline, Arithmetic);

// All-gather by ring: rank i contributes counts[i] elements; output = all contributions in rank order.
Schedule ring_allgather(int rank, const std::vector<uint64_t>& counts, Pipeline);
// The same of chunks that lie anywhere in the output, by rank; the input is the own one.
Schedule ring_allgather(int rank, const std::vector<Chunk>& chunks, Pipeline);

// Broadcast by a pipelined binomial tree from root. input is read on root only; output is written on every rank
// (on root too, by a copy, unless in_place).
Schedule tree_broadcast(int ranks, int rank, int root, uint64_t count, Pipeline, bool in_place);

// Two ranks swap their tensors: each sends its input, and ends with the other's in its output.
Schedule swap(int peer, uint64_t count, Pipeline);

// All-to-all: send_counts[i] elements go to rank i, receive_counts[i] come from rank i, both packed in rank order.
// Pairwise: in round k exchange with rank + k and rank - k.
Schedule pairwise_alltoall(int rank, const std::vector<uint64_t>& send_counts,
                           const std::vector<uint64_t>& receive_counts, Pipeline);
// The same of chunks that lie anywhere: sends[i] of the input goes to rank i, receives[i] of the output comes from it.
Schedule pairwise_alltoall(int rank, const std::vector<Chunk>& sends, const std::vector<Chunk>& receives, Pipeline);

}  // namespace ringdp
