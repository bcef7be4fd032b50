// Exchanges that are captured in CUDA graphs: agreed on and launched as any other, once; from then on the graphs' replays do
// them, and the engine only watches how far these have come (device/captured_graph.h).
#include <algorithm>
#include <cstdio>
#include <thread>

#include "device/kernels.h"
#include "engine/engine.h"
#include "world/gpus.h"

namespace ringdp {

namespace {

using Way = Gpus::Way;

constexpr double kMostToEnd = 5;  // seconds, of a replay that is under way when ringdp is shut down

void forget_those_gone(std::vector<std::shared_ptr<CapturedGraph>>& graphs) {
  graphs.erase(std::remove_if(graphs.begin(), graphs.end(), [](const auto& graph) { return !graph->is_alive(); }),
               graphs.end());
}

// The caller is at a replay, and not at a call of ours that could raise: so it is said here, too.
void stop(Gpu& gpu, const Error& why) {
  std::fprintf(stderr, "ringdp: %s. A CUDA graph is being replayed, and must not go on: %s is stopped, for good.\n",
               why.what(), gpu.label().c_str());
  try {
    Kernels::of(gpu).stop(gpu.to_host());
  } catch (const Error&) {  // it stands still already
  }
}

}  // namespace

Error Engine::not_in_a_graph(const Submission& s, const ProcessSet& set) const {
  const std::string what = s.lane >= 0 ? s.bucket_name() : std::string(name_of(s.kind)) + " '" + s.name + "'";
  std::string why = "it goes through host memory or MPI, and only what NCCL carries out can be a part of one";
  if (set.gpus && set.gpus->way == Way::nccl)
    why = set.gpus->kernels ? "it goes through host memory"
                            : "some rank has no kernels of ringdp's, which compare the replays of all ranks";
  return {ErrorKind::usage, "rank " + std::to_string(rank_) + ": " + what +
                                " cannot be captured in a CUDA graph: " + why + "; exchange it outside of the capture"};
}

// --- replays ------------------------------------------------------------------------------------------------------------

// One more exchange of it is captured.
void Engine::note_graph(const Launch& launch) {
  auto& graphs = launch.set.gpus->graphs;
  const auto& graph = launch.submission.graph;
  forget_those_gone(graphs);
  if (std::find(graphs.begin(), graphs.end(), graph) == graphs.end()) graphs.push_back(graph);
}

// No code of ours takes part in a replay. What it leaves behind says whether all ranks replay the same, and whether it moves.
void Engine::watch_graphs() {
  for (const auto& [id, set] : sets_) {
    if (!set->gpus) continue;
    auto& graphs = set->gpus->graphs;
    forget_those_gone(graphs);
    for (const auto& graph : graphs) look_at_replays(*set, graph->replays(id, set->size(), set->rank()));
  }
}

std::string Engine::replay_text(const CapturedGraph::Replays& replays, uint64_t replay) const {
  return "rank " + std::to_string(rank_) + ": replay " + std::to_string(replay) + " of a CUDA graph that begins with " +
         replays.labels.at(0);
}

void Engine::look_at_replays(const ProcessSet& set, CapturedGraph::Replays& replays) {
  if (const auto error = difference_of_replays(set, replays)) throw Error(*error);
  const kernels::gpu::Progress now = replays.progress();
  if (!replays.is_stuck(Seconds(options_.timeout))) return;
  const std::string where = now.exchange == 0 ? "its beginning" : "what follows " + replays.labels.at(now.exchange - 1);
  fail(ErrorKind::gpu, replay_text(replays, now.begun), " has waited RINGDP_TIMEOUT seconds in ", where,
       ": at least one rank has not replayed it, or has stopped in it");
}

std::optional<Error> Engine::difference_of_replays(const ProcessSet& set, const CapturedGraph::Replays& replays) const {
  const kernels::gpu::Progress now = replays.progress();
  if (now.other == 0) return std::nullopt;
  const std::string other = "rank " + std::to_string(set.ranks[static_cast<size_t>(now.other) - 1]);
  const bool is_same = now.other_graph == replays.number;
  return Error(ErrorKind::gpu,
               replay_text(replays, now.begun) + " was not begun: " + other +
                   (is_same ? " comes with its replay " + std::to_string(now.other_replay) : " replays another graph") +
                   "; all ranks must replay the same graphs, equally often and in the same order");
}

// A GPU that one of our kernels has stopped gives an error to whatever is called first.
Error Engine::cause_of(const Error& error) const {
  for (const auto& [id, set] : sets_)
    if (set->gpus)
      for (const auto& graph : set->gpus->graphs)
        if (const auto cause = difference_of_replays(*set, graph->replays(id, set->size(), set->rank()))) return *cause;
  return error;
}

// Nobody watches any more. A replay that is under way may wait for ever, or go on with anything: where it does not end by
// itself, the GPU stops, and so it does at the beginning of each later one. NCCL would end a communicator only behind the
// graphs that refer to it, so while some are alive it cannot be aborted for other operations either.
void Engine::end_graphs(const Error& why) {
  const bool in_peace = why.kind() == ErrorKind::closed;
  const Deadline until = Deadline::in(Seconds(in_peace ? kMostToEnd : 0));
  for (const auto& [id, set] : sets_) {
    if (!set->gpus || !set->gpus->graphs_are_alive()) continue;
    bool under_way = !in_peace && std::any_of(running_.begin(), running_.end(),
                                              [id = id](const Running& one) { return one.set == id; });
    for (const auto& graph : set->gpus->graphs) {
      if (!graph->is_alive()) continue;
      CapturedGraph::Replays& replays = graph->replays(id, set->size(), set->rank());
      while (replays.is_under_way() && !until.passed()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      replays.refuse();
      under_way |= replays.is_under_way();
    }
    if (under_way) stop(*set->gpus->gpu, why);
    set->gpus->nccl->leave();
  }
}

}  // namespace ringdp
