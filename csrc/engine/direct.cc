#include "engine/direct.h"

#include "engine/chunks.h"
#include "engine/operation.h"

namespace ringdp {

bool Direct::reduces(const Submission& s) {
  return s.kind == OpKind::reducescatter || (s.kind == OpKind::allreduce && s.half != Half::all_gather);
}

Direct::Direct(Submission& submission, const ProcessSet& set)
    : submission_(submission), set_(set), gpu_(submission.place->gpu) {
  if (reduces() || gathers()) chunks_ = chunks_of(submission_, set_);
  const uint64_t bytes = reduces() ? size_of(own()) * item() * static_cast<uint64_t>(set_.size()) : 0;
  if (bytes > 0) room_ = gpu_.room(bytes);
}

// The GPU may still read what is in between, or copy into it. Nobody else does: an operation that MPI has not let go is
// never destroyed while others run.
Direct::~Direct() {
  if (!room_) return;
  try {
    room_->keep_until(reduced_ ? reduced_ : gpu_.record(gpu_.exchange()));
  } catch (const Error&) {  // of a GPU that answers no more, nobody knows when it is done
    room_->keep_for_good();
  }
}

Gpu::Point Direct::ask_for_output(uint64_t rows) {
  submission_.output = submission_.place->allocate(rows);
  // Behind what the caller's stream still does in that memory.
  return gpu_.record(stream_at(submission_.place->stream));
}

// All of the output of a reduce-scatter.
std::byte* Direct::own_place() const {
  auto* output = static_cast<std::byte*>(submission_.output);
  return submission_.kind == OpKind::reducescatter ? output : output + own().begin * item();
}

// In place no chunk is overwritten before it was sent: the sums come into the output when all of this is done.
Schedule Direct::exchange(Pipeline pipeline) const {
  const uint64_t mine = size_of(own());
  std::vector<Chunk> places;
  for (uint64_t rank = 0; rank < chunks_.size(); ++rank) places.push_back({rank * mine, (rank + 1) * mine});
  return pairwise_alltoall(set_.rank(), chunks_, places, pipeline);
}

Gpu::Point Direct::reduce() {
  if (room_)
    reduce_chunks(gpu_, elements_of(submission_, set_.size()), set_.size(), own_place(), room_->data(), size_of(own()),
                  gpu_.exchange());
  return reduced_ = gpu_.record(gpu_.exchange());
}

Schedule Direct::gather(Pipeline pipeline) const { return ring_allgather(set_.rank(), chunks_, pipeline); }

std::function<void(void*, const void*, size_t)> Direct::copies() const {
  return [&gpu = gpu_](void* to, const void* from, size_t bytes) { gpu.copy_on_gpu(to, from, bytes, gpu.exchange()); };
}

}  // namespace ringdp
