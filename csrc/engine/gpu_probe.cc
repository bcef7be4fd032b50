// Whether MPI takes memory of GPUs: what it says is one thing, so known values go from each rank's GPU to the next one's, and
// are looked at.
//
// One message of two segments, as all operations have them: a long one, and a short one, since MPIs send short messages in
// another way. Around the ranks, so that it goes inside hosts and between them.
#include <algorithm>
#include <cstring>
#include <utility>

#include "engine/engine.h"

namespace ringdp {

namespace {

using Way = Gpus::Way;

constexpr uint64_t kBytes = (512 << 10) + 1000;

std::byte value(int rank, uint64_t i) { return static_cast<std::byte>(31 * static_cast<uint64_t>(rank) + i + i / 251); }

}  // namespace

// On the GPU: what is sent, and behind it the place of what comes, where no byte is right by chance.
void Engine::begin_probe(ProcessSet& set) {
  Gpus& gpus = *set.gpus;
  Gpu& gpu = *gpus.gpu;
  const int next = (set.rank() + 1) % set.size(), previous = (set.rank() + set.size() - 1) % set.size();
  gpus.said.clear();
  gpus.check.values = gpu.pinned(2 * kBytes);
  gpus.check.on_gpu = gpu.allocate(2 * kBytes);
  auto* values = static_cast<std::byte*>(gpus.check.values->data());
  auto* there = static_cast<std::byte*>(gpus.check.on_gpu->data);
  for (uint64_t i = 0; i < kBytes; ++i) values[i] = value(set.rank(), i), values[kBytes + i] = ~value(previous, i);
  gpu.copy_to_gpu(there, values, 2 * kBytes, gpu.from_host());
  gpus.way = Way::probing;
  gpu_of_mpi_ = &gpu;
  gpus.until = Deadline::in(Seconds(options_.timeout));
  Submission s;
  s.kind = OpKind::alltoall;
  s.dtype = Dtype::uint8;
  s.shape = {kBytes};
  s.splits.assign(static_cast<size_t>(set.size()), 0);
  s.splits[static_cast<size_t>(next)] = kBytes;
  s.input = there;
  s.on_gpu = s.by_mpi = true;
  s.place = std::make_shared<OnGpu>(
      OnGpu{gpu, 0, gpu.record(gpu.from_host()), [there](uint64_t) -> void* { return there + kBytes; }});
  ask(set, std::move(s), "probe");
}

bool Engine::look_at_probe(ProcessSet& set) {
  Gpus& gpus = *set.gpus;
  Gpu& gpu = *gpus.gpu;
  SelfCheck& check = gpus.check;
  if (gpus.until.passed())
    fail(ErrorKind::gpu, "rank ", rank_, ": known values did not come by MPI within RINGDP_TIMEOUT");
  auto* came = static_cast<std::byte*>(check.values->data()) + kBytes;
  if (!check.done) {
    if (!gpus.asked->done()) return false;
    gpus.asked->result().completed->hold_up(gpu.to_host());
    gpu.copy_to_host(came, static_cast<std::byte*>(check.on_gpu->data) + kBytes, kBytes, gpu.to_host());
    check.done = gpu.record(gpu.to_host());
  }
  if (!check.done->passed()) return false;
  const int previous = (set.rank() + set.size() - 1) % set.size();
  uint64_t wrong = 0;
  for (uint64_t i = 0; i < kBytes; ++i) wrong += came[i] != value(previous, i);
  if (wrong > 0)
    gpus.said = gpu.label() + ": of " + std::to_string(kBytes) + " known bytes that MPI brought from rank " +
                std::to_string(set.ranks[static_cast<size_t>(previous)]) + "'s GPU " + std::to_string(wrong) +
                " are wrong";
  check = {};
  tell_text(set, Way::probed, "probed");
  return true;
}

bool Engine::all_have_probed(ProcessSet& set) {
  Gpus& gpus = *set.gpus;
  const std::string wrong = complaint(set);
  if (wrong.empty()) {
    begin_check(set, Way::mpi);
    return true;
  }
  if (gpus.card.wants == GpuTransport::mpi)
    fail(ErrorKind::gpu, "rank ", rank_, ": RINGDP_GPU_TRANSPORT=mpi, but ", wrong);
  gpus.why_not_mpi = wrong;
  go_through_host(set);
  return true;
}

}  // namespace ringdp
