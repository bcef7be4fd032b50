#include "engine/chunks.h"

#include <optional>

#include "collectives/halves.h"
#include "device/kernels.h"

namespace ringdp {

std::vector<Chunk> chunks_of(const Submission& s, const ProcessSet& set) {
  const uint64_t bytes = s.count() * size_of(s.dtype);
  const Algorithm chosen = set.chooser.choose_in_one_level(bytes, s.dtype);
  std::vector<Chunk> chunks;
  for (int rank = 0; rank < set.size(); ++rank) {
    if (s.kind == OpKind::reducescatter) {
      const Chunk rows = chunk_of(s.shape[0], set.size(), rank);
      chunks.push_back({rows.begin * s.row_count(), rows.end * s.row_count()});
    } else {
      chunks.push_back(own_chunk(chosen, std::nullopt, set.size(), rank, s.count()));
    }
  }
  return chunks;
}

void reduce_chunks(Gpu& gpu, const Elements& e, int ranks, void* to, void* chunks, uint64_t count,
                   cuda::Stream stream) {
  const uint64_t bytes = count * size_of(e.dtype);
  if (e.prescale != 1)
    Kernels::of(gpu).scale(e.dtype, chunks, chunks, e.prescale, count * static_cast<uint64_t>(ranks), stream);
  if (ranks == 1) gpu.copy_on_gpu(to, chunks, bytes, stream);
  auto* chunk = static_cast<std::byte*>(chunks);
  const void* sum = chunk;
  for (int rank = 1; rank < ranks; ++rank, sum = to) {
    chunk += bytes;
    Kernels::of(gpu).reduce(e.dtype, e.op, to, sum, chunk, count, stream);
  }
  finish_on_gpu(gpu, e, to, count, stream);
}

void finish_on_gpu(Gpu& gpu, const Elements& e, void* sums, uint64_t count, cuda::Stream stream) {
  if (e.divide != 1) Kernels::of(gpu).divide(e.dtype, sums, sums, e.divide, count, stream);
  if (e.postscale != 1) Kernels::of(gpu).scale(e.dtype, sums, sums, e.postscale, count, stream);
}

}  // namespace ringdp
