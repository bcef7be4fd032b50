#include "nccl_collectives.h"

#include <algorithm>
#include <cstring>

#include "nccl_elements.h"

namespace standin {

using ringdp::nccl::kAverage;

const char* name_of(Kind kind) {
  constexpr const char* names[] = {"ncclAllReduce", "ncclReduce", "ncclReduceScatter", "ncclAllGather",
                                   "ncclBroadcast"};
  return names[kind];
}

namespace {

std::string text_of(const Call& call) {
  return std::string(name_of(static_cast<Kind>(call.kind))) + " of " + std::to_string(call.count) + " " +
         ringdp::name_of(dtype_of(call.type)) + " (operation " + std::to_string(call.operation) + ", root " +
         std::to_string(call.root) + ")";
}

// --- where its elements are -------------------------------------------------------------------------------------------------

struct Spans {
  const std::byte* from;
  size_t read;
  std::byte* to;
  size_t written;
  bool in_place;
};

Spans spans_of(const Comm& c, const Call& call, const Buffers& buffers) {
  const size_t part = call.count * size_of(dtype_of(call.type)), whole = part * static_cast<size_t>(c.ranks);
  const size_t own = part * static_cast<size_t>(c.rank);
  const auto* from = static_cast<const std::byte*>(buffers.from);
  auto* to = static_cast<std::byte*>(buffers.to);
  const bool is_root = c.rank == call.root;
  switch (call.kind) {
    case reduce_kind:
      return {from, part, to, is_root ? part : 0, from == to};
    case scatter_kind:
      return {from, whole, to, part, to == from + own};
    case gather_kind:
      return {from, part, to, whole, from == to + own};
    case broadcast_kind:
      return {from, is_root ? part : 0, to, part, from == to};
    default:
      return {from, part, to, part, from == to};
  }
}

std::byte* reach(const Comm& c, const std::byte* at, size_t bytes, const char* who) {
  return bytes == 0 ? nullptr : of_cuda().reach(reinterpret_cast<cuda::Address>(at), bytes, who, c.ordinal);
}

// --- a walk through the slots, a piece at a time ----------------------------------------------------------------------------

// False if the communicator was aborted before all had come.
bool agrees(Comm& c, const Call& call) {
  c.file->calls[c.rank] = call;
  if (!barrier(c)) return false;
  for (int r = 0; r < c.ranks; ++r)
    if (!(c.file->calls[r] == call))
      misuse("rank " + std::to_string(c.rank) + " calls " + text_of(call) + ", but rank " + std::to_string(r) + " " +
             text_of(c.file->calls[r]));
  return barrier(c);
}

void put(Comm& c, const std::byte* from, uint64_t elements, const Call& call) {
  const Dtype dtype = dtype_of(call.type);
  std::memcpy(c.file->slots[c.rank], from, elements * size_of(dtype));
  const bool multiplies = call.operation == kPremultiplied || (call.operation == kAverage && is_float(dtype));
  if (multiplies) premultiply(dtype, c.file->slots[c.rank], call.factor, elements);
}

void sum_slots(Comm& c, std::byte* to, uint64_t elements, const Call& call) {
  const Dtype dtype = dtype_of(call.type);
  std::memcpy(to, c.file->slots[0], elements * size_of(dtype));
  for (int r = 1; r < c.ranks; ++r) combine(dtype, call.operation, to, c.file->slots[r], elements);
  if (call.operation == kAverage && !is_float(dtype)) divide(dtype, to, c.ranks, elements);
}

// In pieces that fit into a slot: give and take(offset in bytes, elements) between two barriers.
template <class Give, class Take>
bool walk(Comm& c, const Call& call, const Give& give, const Take& take) {
  const size_t item = size_of(dtype_of(call.type));
  const uint64_t most = kSlot / item;
  for (uint64_t at = 0; at < call.count; at += most) {
    const uint64_t elements = std::min(most, call.count - at);
    give(at * item, elements);
    if (!barrier(c)) return false;
    take(at * item, elements);
    if (!barrier(c)) return false;
  }
  return true;
}

}  // namespace

void check(const Comm& c, const Call& call, const Buffers& buffers) {
  const char* name = name_of(static_cast<Kind>(call.kind));
  const Spans s = spans_of(c, call, buffers);
  reach(c, s.from, s.read, name);
  reach(c, s.to, s.written, name);
  const bool overlap = s.from < s.to + s.written && s.to < s.from + s.read;
  if (overlap && !s.in_place) misuse(std::string(name) + ": input and output overlap, and not as in place");
}

void carry_out(Comm& c, const Call& call, const Buffers& buffers) {
  if (!agrees(c, call)) return;
  const char* name = name_of(static_cast<Kind>(call.kind));
  const Spans s = spans_of(c, call, buffers);
  const std::byte* from = reach(c, s.from, s.read, name);  // once more: it must not have been freed
  std::byte* to = reach(c, s.to, s.written, name);
  const size_t item = size_of(dtype_of(call.type));
  const auto nothing = [](size_t, uint64_t) {};
  const auto give = [&](size_t at, uint64_t n) { put(c, from + at, n, call); };
  const auto sum = [&](size_t at, uint64_t n) { sum_slots(c, to + at, n, call); };
  const bool is_root = c.rank == call.root;
  switch (call.kind) {
    case allreduce_kind:
      walk(c, call, give, sum);
      return;
    case reduce_kind:
      is_root ? walk(c, call, give, sum) : walk(c, call, give, nothing);
      return;
    case scatter_kind:
      for (int owner = 0; owner < c.ranks; ++owner) {
        const std::byte* part = from + static_cast<size_t>(owner) * call.count * item;
        const auto give_part = [&](size_t at, uint64_t n) { put(c, part + at, n, call); };
        if (!(owner == c.rank ? walk(c, call, give_part, sum) : walk(c, call, give_part, nothing))) return;
      }
      return;
    case gather_kind:
      walk(c, call, give, [&](size_t at, uint64_t n) {
        for (int r = 0; r < c.ranks; ++r)
          std::memcpy(to + static_cast<size_t>(r) * call.count * item + at, c.file->slots[r], n * item);
      });
      return;
    default: {
      const auto take = [&](size_t at, uint64_t n) { std::memcpy(to + at, c.file->slots[call.root], n * item); };
      is_root ? walk(c, call, give, take) : walk(c, call, nothing, take);
    }
  }
}

}  // namespace standin
