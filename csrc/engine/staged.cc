#include "engine/staged.h"

#include <algorithm>

#include "device/staging.h"

namespace ringdp {

namespace {

// A copy of so much takes far longer than asking for it, and the first piece is soon there.
constexpr uint64_t kPieceBytes = 512 << 10;

uint64_t bytes_in(const Submission& s) { return s.count() * size_of(s.dtype); }

uint64_t bytes_out(const Submission& s, int rank, int ranks) {
  if (s.kind != OpKind::reducescatter) return bytes_in(s);
  const Chunk rows = chunk_of(s.shape[0], ranks, rank);
  return (rows.end - rows.begin) * s.row_count() * size_of(s.dtype);
}

bool has_own_output(const Submission& s) { return s.kind == OpKind::reducescatter || s.first_may_differ(); }

}  // namespace

Staged::Staged(Submission& s, int rank, int ranks)
    : place_(s.place),
      gpu_(place_->gpu),
      input_(s.input),
      output_(s.output),
      dtype_(s.dtype),
      count_(s.count()),
      output_bytes_(s.first_may_differ() ? 0 : bytes_out(s, rank, ranks)),
      // The second half alone writes what it has not read, which a copy that is under way would undo.
      in_pieces_(s.kind == OpKind::allreduce && s.op != ReduceOp::adasum && s.half == Half::both),
      from_(gpu_.pinned(bytes_in(s))) {
  const bool sends = s.kind != OpKind::broadcast || s.root == rank;
  if (!in_pieces_ && sends) {
    place_->ready->hold_up(gpu_.to_host());
    gpu_.copy_to_host(from_->data(), input_, bytes_in(s), gpu_.to_host());
    arrival_ = gpu_.record(gpu_.to_host());
  }
  if (!has_own_output(s)) to_ = from_;
  if (s.kind == OpKind::reducescatter) to_ = gpu_.pinned(output_bytes_);
  s.input = from_->data();
  s.output = to_ ? to_->data() : nullptr;
  s.room = 0;
}

// The copies that were asked for still happen, also after a failure.
Staged::~Staged() {
  if (arrival_) from_->keep_until(arrival_);
}

std::unique_ptr<Pieces> Staged::pieces(const Schedule& schedule, uint64_t segment) const {
  const uint64_t piece = std::max<uint64_t>(segment, kPieceBytes / size_of(dtype_));
  return std::make_unique<Staging>(schedule, gpu_, input_, output_, from_, size_of(dtype_), count_, piece,
                                   *place_->ready);
}

void* Staged::output_of(uint64_t rows, uint64_t bytes) {
  output_ = place_->allocate(rows);
  if (output_ == nullptr && bytes > 0) return nullptr;
  output_bytes_ = bytes;
  to_ = gpu_.pinned(bytes);
  gpu_.record(stream_at(place_->stream))
      ->hold_up(gpu_.from_host());  // behind what the stream still does in that memory
  return to_->data();
}

Gpu::Point Staged::finish() {
  if (!in_pieces_ && output_bytes_ > 0) {
    place_->ready->hold_up(gpu_.from_host());
    gpu_.copy_to_gpu(output_, to_->data(), output_bytes_, gpu_.from_host());
  }
  Gpu::Point done = gpu_.record(gpu_.from_host());
  if (to_) to_->keep_until(done);
  return done;
}

}  // namespace ringdp
