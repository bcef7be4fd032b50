// What the kernels are given: one structure each, by value. The host fills them in (device/kernels.cc), so they are
// plain C++ of one layout everywhere. Addresses are those of memory on the GPU, as numbers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ringdp::kernels::gpu {

using Address = uint64_t;

constexpr unsigned kThreads = 256;  // of a block, in every kernel
// Elements that a block does at a time. A tile never spans two tensors; with 16 elements a thread, the narrowest dtype
// still fills 16 bytes.
constexpr uint64_t kTile = 16 * kThreads;

constexpr uint64_t tiles_of(uint64_t elements) { return (elements + kTile - 1) / kTile; }

// A tensor and its place in a bucket. Tables are in order of `first_tile`, which is what the tensors before it have.
struct Entry {
  Address tensor;
  uint64_t first;  // its first element's number in the bucket
  uint64_t count;  // > 0
  uint64_t first_tile;
};

// Of pack (tensors to bucket) and unpack (bucket to tensors).
struct PackParameters {
  Address table;  // of Entry
  uint64_t entries;
  uint64_t tiles;  // of all tensors together
  Address bucket;
  double factor;  // 1: a copy, bit for bit, where the dtypes are the same
  Address flag;   // uint32_t, set to 1 if an element that was read is infinite or NaN; 0: not looked for
};

struct ScaleParameters {
  Address to, from;  // may be the same
  uint64_t count;
  double factor;
};

struct DivideParameters {
  Address to, from;  // may be the same
  uint64_t count;
  int64_t ranks;
};

struct ReduceParameters {
  Address to, a, b;  // `to` may be `a` or `b`
  uint64_t count;
};

struct FiniteParameters {
  Address from;
  uint64_t count;
  Address flag;  // as in PackParameters
};

// Of quantise (float32 to wire) and dequantise (wire to float32). On the wire a block is its codes, one signed byte
// each, and then its scale, a float32 at any address. The last block is filled up with zeros.
struct QuantiseParameters {
  Address to, from;
  uint64_t count;  // of float32
  uint64_t block;
};

constexpr uint64_t kScaleBytes = 4;

constexpr uint64_t blocks_of(uint64_t count, uint64_t block) { return (count + block - 1) / block; }

// Of the replays of a CUDA graph (device/captured_graph.h): what they leave in host memory, each a word that is written alone.
struct Progress {
  uint64_t begun;     // replays
  uint64_t exchange;  // of the last one: so many exchanges have ended
  uint64_t refused;   // by the host: none may begin any more
  uint64_t other;     // the rank that replays something else, plus 1
  uint64_t other_graph, other_replay;
};

constexpr uint64_t kToldBytes = 2 * sizeof(uint64_t);  // of each rank: its graph, and which replay it is

struct BeginReplayParameters {
  Address progress;  // in host memory
  Address count;     // uint64_t on the GPU: replays so far
  Address told;      // on the GPU
  uint64_t graph;
};

struct CompareReplaysParameters {
  Address progress;
  Address heard;  // on the GPU, of each rank what it told
  uint64_t ranks, rank;
};

struct NoteExchangeParameters {
  Address progress;
  uint64_t exchange;
};

struct StopParameters {
  uint64_t nothing;
};

static_assert(sizeof(Entry) == 32 && offsetof(Entry, first_tile) == 24);
static_assert(sizeof(PackParameters) == 48 && offsetof(PackParameters, factor) == 32);
static_assert(sizeof(ScaleParameters) == 32 && offsetof(ScaleParameters, factor) == 24);
static_assert(sizeof(DivideParameters) == 32 && offsetof(DivideParameters, ranks) == 24);
static_assert(sizeof(ReduceParameters) == 32 && offsetof(ReduceParameters, count) == 24);
static_assert(sizeof(FiniteParameters) == 24 && offsetof(FiniteParameters, flag) == 16);
static_assert(sizeof(QuantiseParameters) == 32 && offsetof(QuantiseParameters, block) == 24);

}  // namespace ringdp::kernels::gpu
