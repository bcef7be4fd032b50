// What a replay of a CUDA graph with exchanges does besides them, as no code of ours on the host sees it: it counts itself,
// compares what all ranks replay before anything is exchanged, and says in host memory how far it has come. By one thread.
#include "kernels/gpu/execution.h"

namespace ringdp::kernels::gpu {
namespace {

template <class Act>
RINGDP_DEVICE void first_thread(Act act) {
  each_thread([&](unsigned thread) {
    if (thread == 0) act();
  });
}

RINGDP_DEVICE void store_progress(Address progress, size_t offset, uint64_t value) { store(progress + offset, value); }

// Before what the ranks tell each other. Where nobody would answer, the GPU stops.
RINGDP_DEVICE void begin_replay(const BeginReplayParameters& given) {
  first_thread([&] {
    if (load<uint64_t>(given.progress + offsetof(Progress, refused)) != 0) return trap();
    const uint64_t replay = load<uint64_t>(given.count) + 1;
    store(given.count, replay);
    store(given.told, given.graph);
    store(given.told + sizeof(uint64_t), replay);
    store_progress(given.progress, offsetof(Progress, exchange), 0);
    store_progress(given.progress, offsetof(Progress, begun), replay);
  });
}

// When it is here. Sums of ranks that replay different graphs would be wrong, and nobody would know: so the GPU stops.
RINGDP_DEVICE void compare_replays(const CompareReplaysParameters& given) {
  first_thread([&] {
    const Address mine = given.heard + given.rank * kToldBytes;
    for (uint64_t rank = 0; rank < given.ranks; ++rank) {
      const Address theirs = given.heard + rank * kToldBytes;
      const auto graph = load<uint64_t>(theirs), replay = load<uint64_t>(theirs + sizeof(uint64_t));
      if (graph == load<uint64_t>(mine) && replay == load<uint64_t>(mine + sizeof(uint64_t))) continue;
      store_progress(given.progress, offsetof(Progress, other_graph), graph);
      store_progress(given.progress, offsetof(Progress, other_replay), replay);
      store_progress(given.progress, offsetof(Progress, other), rank + 1);
      publish();
      return trap();
    }
  });
}

RINGDP_DEVICE void note_exchange(const NoteExchangeParameters& given) {
  first_thread([&] { store_progress(given.progress, offsetof(Progress, exchange), given.exchange); });
}

RINGDP_DEVICE void stop(const StopParameters&) {
  first_thread([] { trap(); });
}

RINGDP_KERNEL(begin_replay, BeginReplayParameters, begin_replay)
RINGDP_KERNEL(compare_replays, CompareReplaysParameters, compare_replays)
RINGDP_KERNEL(note_exchange, NoteExchangeParameters, note_exchange)
RINGDP_KERNEL(stop, StopParameters, stop)

}  // namespace
}  // namespace ringdp::kernels::gpu
