#include "device/captured_graph.h"

#include <cstring>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "base/check.h"
#include "device/kernels.h"

namespace ringdp {

namespace {

using kernels::gpu::kToldBytes;
using kernels::gpu::Progress;

constexpr double kMostToCopy = 60;  // seconds

struct Capture {
  uint64_t id = 0;  // 0: none
  cuda::Graph graph = nullptr;
};

Capture capture_of(const Gpu& gpu, cuda::Stream stream) {
  const Gpu::Current current(gpu);
  Capture capture;
  int status = 0;
  const cuda::Driver& driver = gpu.driver();
  gpu.check(driver.capture_info(stream, &status, &capture.id, &capture.graph, nullptr, nullptr),
            "cuStreamGetCaptureInfo");
  if (status == cuda::kCaptureNone) return {};
  if (status != cuda::kCaptureActive)
    fail(ErrorKind::usage, gpu.label(), ": the CUDA graph that its current stream is captured in has become invalid; ",
         "an error before this call says why");
  return capture;
}

// All that may still be replayed, by capture. Whoever looks gives up those that are gone.
struct Registry {
  std::mutex mutex;
  std::map<uint64_t, std::shared_ptr<CapturedGraph>> graphs;
  std::multimap<int, cuda::Stream> spare;  // by GPU: streams of those that are gone
};

Registry& registry() {
  static auto& all = *new Registry;  // never destroyed: as those that Gpu::of makes
  return all;
}

}  // namespace

std::shared_ptr<CapturedGraph> CapturedGraph::of(Gpu& gpu, cuda::Stream stream) {
  const Capture capture = capture_of(gpu, stream);
  if (capture.id == 0) return nullptr;
  std::vector<std::shared_ptr<CapturedGraph>> gone;  // their memory is given back outside of the lock
  Registry& all = registry();
  std::lock_guard lock(all.mutex);
  if (const auto found = all.graphs.find(capture.id); found != all.graphs.end()) return found->second;
  for (auto it = all.graphs.begin(); it != all.graphs.end();) {
    const auto here = it++;
    if (here->second->is_alive()) continue;
    all.spare.emplace(here->second->gpu_.ordinal(), here->second->stream_);
    gone.push_back(std::move(here->second));
    all.graphs.erase(here);
  }
  const auto spare = all.spare.find(gpu.ordinal());
  const cuda::Stream own = spare == all.spare.end() ? gpu.new_stream() : spare->second;
  if (spare != all.spare.end()) all.spare.erase(spare);
  const std::shared_ptr<CapturedGraph> made(new CapturedGraph(gpu, own));
  made->stay_with(capture.graph);
  return all.graphs[capture.id] = made;
}

// The driver calls back when the graph and all executables that were made of it are gone.
void CapturedGraph::stay_with(cuda::Graph graph) {
  const Gpu::Current current(gpu_);
  const cuda::Driver& driver = gpu_.driver();
  auto* const held = new std::shared_ptr<std::atomic<bool>>(life_);
  const auto ended = [](void* life) {
    const std::unique_ptr<std::shared_ptr<std::atomic<bool>>> last(
        static_cast<std::shared_ptr<std::atomic<bool>>*>(life));
    (*last)->store(false);
  };
  cuda::UserObject object = nullptr;
  const cuda::Result made = driver.object_create(&object, held, ended, 1, cuda::kNoDestructorSync);
  if (made != cuda::kSuccess) delete held;
  gpu_.check(made, "cuUserObjectCreate");
  gpu_.check(driver.graph_retain(graph, object, 1, cuda::kMoveReferences), "cuGraphRetainUserObject");
}

void* CapturedGraph::keep(size_t bytes) {
  blocks_.push_back(gpu_.allocate(bytes));
  return blocks_.back()->data;
}

void* CapturedGraph::scratch(size_t bytes) {
  if (bytes > scratch_bytes_) scratch_ = keep(bytes), scratch_bytes_ = bytes;
  return bytes == 0 ? nullptr : scratch_;
}

void* CapturedGraph::constant(const void* bytes, size_t count) {
  void* const there = keep(count);
  const auto pinned = gpu_.pinned(count);
  std::memcpy(pinned->data(), bytes, count);
  gpu_.copy_to_gpu(there, pinned->data(), count, gpu_.from_host());
  const Gpu::Point copied = gpu_.record(gpu_.from_host());
  const Deadline until = Deadline::in(Seconds(kMostToCopy));
  while (!copied->passed()) {
    if (until.passed()) fail(ErrorKind::gpu, gpu_.label(), " has not copied ", count, " bytes within a minute");
    std::this_thread::yield();
  }
  return there;
}

uint64_t CapturedGraph::number_in(int process_set) const {
  const auto found = replays_.find(process_set);
  return found == replays_.end() ? 0 : found->second->number;
}

// --- replays ------------------------------------------------------------------------------------------------------------

CapturedGraph::Replays& CapturedGraph::replays(int process_set, int ranks, int rank) {
  std::unique_ptr<Replays>& found = replays_[process_set];
  if (!found) found.reset(new Replays(gpu_, *this, ranks, rank));
  return *found;
}

CapturedGraph::Replays::Replays(Gpu& gpu, CapturedGraph& graph, int ranks, int rank)
    : gpu_(gpu), graph_(graph), ranks_(ranks), rank_(rank), host_(gpu.pinned(sizeof(Progress))) {
  new (host_->data()) Progress{};
  Kernels::of(gpu).load_for_replays();
  const std::vector<std::byte> zeros(sizeof(uint64_t) + kToldBytes * (1 + static_cast<size_t>(ranks)));
  count_ = static_cast<std::byte*>(graph.constant(zeros.data(), zeros.size()));
  mine_ = count_ + sizeof(uint64_t);
  all_ = mine_ + kToldBytes;
}

void CapturedGraph::Replays::begin(uint64_t agreed) {
  number = agreed;
  Kernels::of(gpu_).begin_replay(host_->data(), count_, mine_, number, graph_.stream());
}

void CapturedGraph::Replays::compare() {
  Kernels::of(gpu_).compare_replays(host_->data(), all_, ranks_, rank_, graph_.stream());
}

void CapturedGraph::Replays::came_to_next(const std::string& label) {
  labels.push_back(label);
  Kernels::of(gpu_).note_exchange(host_->data(), labels.size(), graph_.stream());
}

Progress CapturedGraph::Replays::progress() const {
  Progress now;
  const auto* from = static_cast<const uint64_t*>(host_->data());
  auto* to = reinterpret_cast<uint64_t*>(&now);
  for (size_t i = 0; i < sizeof now / sizeof *to; ++i) to[i] = __atomic_load_n(from + i, __ATOMIC_ACQUIRE);
  return now;
}

bool CapturedGraph::Replays::is_under_way() const {
  const Progress now = progress();
  return now.begun > 0 && now.exchange < labels.size();
}

bool CapturedGraph::Replays::is_stuck(Seconds most) {
  const Progress now = progress();
  const bool moved = now.begun != seen_.begun || now.exchange != seen_.exchange;
  if (moved || !is_under_way()) seen_ = now, moved_ = Clock::now();
  return Clock::now() - moved_ > most;
}

void CapturedGraph::Replays::refuse() {
  __atomic_store_n(&static_cast<Progress*>(host_->data())->refused, uint64_t{1}, __ATOMIC_RELEASE);
}

}  // namespace ringdp
