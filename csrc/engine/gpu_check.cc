// Whether known values come out right by the way that GPU tensors are to go: what is found wrong here is no user's loss.
#include <string>
#include <utility>

#include "device/kernels.h"
#include "engine/engine.h"

namespace ringdp {

namespace {

using Way = Gpus::Way;

// By which kernels are checked together with who moves chunks for them.
bool has_maximum(const Gpus& gpus) { return gpus.kernels && gpus.found != Way::host; }

}  // namespace

// Small whole numbers, whose sums are exact in any order. NCCL's turn comes as for any operation: other process sets may
// share the GPU. By MPI without kernels of ours there are no sums.
void Engine::begin_check(ProcessSet& set, Way found) {
  Gpus& gpus = *set.gpus;
  Gpu& gpu = *gpus.gpu;
  constexpr size_t bytes = 2 * SelfCheck::kCount * sizeof(float);
  gpus.found = found;
  gpus.said.clear();
  gpus.check.values = gpu.pinned(bytes);
  gpus.check.on_gpu = gpu.allocate(bytes);
  void* there = gpus.check.on_gpu->data;
  auto* values = static_cast<float*>(gpus.check.values->data());
  for (int i = 0; i < 2 * SelfCheck::kCount; ++i) values[i] = static_cast<float>(set.rank() + 1 + i % 7);
  gpu.copy_to_gpu(there, values, bytes, gpu.from_host());
  gpu.record(gpu.from_host())->hold_up(gpu.exchange());
  gpus.way = Way::checking;
  gpus.until = Deadline::in(Seconds(options_.timeout));
  if (gpus.kernels) Kernels::of(gpu).scale(Dtype::float32, there, there, 2, 2 * SelfCheck::kCount, gpu.exchange());
  Submission s = known_values(gpus, 0);
  if (gpus.kernels) s.prescale = 0.5, s.postscale = 2;
  ask(set, std::move(s), "sum");
}

Submission Engine::known_values(const Gpus& gpus, int first) {
  Submission s;
  s.input = s.output = static_cast<float*>(gpus.check.on_gpu->data) + first;
  s.shape = {SelfCheck::kCount};
  s.on_gpu = true;
  s.by_nccl = gpus.found == Way::nccl;
  s.by_mpi = gpus.found == Way::mpi && gpus.kernels;
  s.place = std::make_shared<OnGpu>(OnGpu{*gpus.gpu, 0, gpus.gpu->record(gpus.gpu->exchange()), nullptr});
  return s;
}

bool Engine::check_values(ProcessSet& set) {
  Gpus& gpus = *set.gpus;
  Gpu& gpu = *gpus.gpu;
  SelfCheck& check = gpus.check;
  if (gpus.until.passed())
    fail(ErrorKind::gpu, "rank ", rank_, ": known values were not reduced within RINGDP_TIMEOUT");
  if (!check.done) {
    if (!gpus.asked->done()) return false;
    gpus.asked->result().completed->hold_up(gpu.to_host());
    if (has_maximum(gpus) && !std::exchange(check.sum_done, true)) {
      Submission s = known_values(gpus, SelfCheck::kCount);
      s.op = ReduceOp::max;
      ask(set, std::move(s), "max");
      return true;
    }
    const size_t bytes = (has_maximum(gpus) ? 2 : 1) * SelfCheck::kCount * sizeof(float);
    gpu.copy_to_host(check.values->data(), check.on_gpu->data, bytes, gpu.to_host());
    check.done = gpu.record(gpu.to_host());
  }
  if (!check.done->passed()) return false;
  gpus.said = wrong_value(gpus, set.size());
  check = {};
  tell_text(set, Way::checked, "checked");
  return true;
}

std::string Engine::wrong_value(const Gpus& gpus, int ranks) {
  const auto* values = static_cast<const float*>(gpus.check.values->data());
  for (int i = 0; i < (has_maximum(gpus) ? 2 : 1) * SelfCheck::kCount; ++i) {
    const bool is_sum = i < SelfCheck::kCount;
    const int reduced = is_sum ? ranks * (ranks + 1) / 2 + ranks * (i % 7) : ranks + i % 7;
    const int wanted = gpus.kernels ? 2 * reduced : reduced;
    if (values[i] != static_cast<float>(wanted))
      return gpus.gpu->label() + ": the " + (is_sum ? "sum" : "maximum") +
             " of known values came out wrong: " + std::to_string(values[i]) + " instead of " + std::to_string(wanted) +
             " at " + std::to_string(i % SelfCheck::kCount);
  }
  return "";
}

bool Engine::all_have_checked(ProcessSet& set) {
  const std::string wrong = complaint(set);
  if (!wrong.empty()) fail(ErrorKind::gpu, "rank ", rank_, ": GPU tensors are not exchanged: ", wrong);
  decide(set);
  return true;
}

}  // namespace ringdp
