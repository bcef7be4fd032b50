#include "engine/operation.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "agree/digest.h"
#include "base/check.h"
#include "base/huge_pages.h"
#include "collectives/halves.h"
#include "collectives/ring.h"

namespace ringdp {

Elements elements_of(const Submission& s, int ranks) {
  Elements e;
  e.dtype = s.dtype;
  e.op = s.op;
  e.prescale = s.prescale;
  e.postscale = s.postscale;
  if (e.op == ReduceOp::average) {
    // These overflow early: they are scaled before the first hop. All others are divided once, at the end.
    if (e.dtype == Dtype::float16 || is_float8(e.dtype))
      e.prescale /= ranks;
    else
      e.divide = ranks;
  }
  return e;
}

Operation::Operation(Submission submission, ProcessSet& set, uint64_t ticket, uint32_t generation,
                     const Options& options, Describe describe, std::vector<Whereabouts> told, Counters& counters)
    : submission_(std::move(submission)),
      set_(set),
      ticket_(ticket),
      generation_(generation),
      options_(options),
      describe_(describe),
      counters_(counters),
      description_(description_of(submission_, describe)),
      lane_(std::max(submission_.lane, 0)),
      chosen_(algorithm_of_half(submission_.half, choose(), set.size())),
      divisor_(submission_.divides_by > 0 ? submission_.divides_by : set.size()),
      told_(std::move(told)) {}

Algorithm Operation::choose() const {
  const Submission& s = submission_;
  const uint64_t bytes = s.count() * size_of(s.dtype);
  const bool by_nccl_maybe = s.on_gpu && s.half != Half::both;
  return by_nccl_maybe ? set_.chooser.choose_in_one_level(bytes, s.dtype) : set_.chooser.choose(bytes, s.dtype);
}

bool Operation::progress() {
  if (done_) return false;
  bool moved = !begun_;
  if (!begun_) begin();
  if (awaited_) moved |= arrive();
  if (meeting_ && meeting_->complete) met();
  if (damage_ && damage_->complete) {
    hear_of_damage();
    moved = true;
  }
  const bool runs = run_ && !damage_ && !done_;
  if (runs) moved |= run_->progress();
  if (runs && run_->done()) {
    run_->checks() ? ask_for_damage() : run_finished();
    moved = true;
  }
  if (moved) last_move_ = Clock::now();
  return moved;
}

void Operation::begin() {
  begun_ = true;
  submission_.handle->enter(Stage::reduce);
  if (!submission_.place || submission_.by_nccl || describes()) return start();
  if (submission_.by_mpi) return begin_direct();
  Counters::add(counters_.by_host_memory);
  try {
    staged_ = std::make_unique<Staged>(submission_, set_.rank(), set_.size());
  } catch (const Error& error) {
    return refuse(error.what());
  }
  if (staged_->arrival()) return wait_for(staged_->arrival(), &Operation::start);
  start();
}

void Operation::start() {
  if (describes() || submission_.first_may_differ()) return run_sizes();
  if (submission_.kind == OpKind::barrier) return finish();
  if (submission_.kind == OpKind::open_plan) {
    result_.lane = Tickets::lane_of(ticket_);
    if (result_.lane > set_.max_lane())
      return give_up(
          Error(ErrorKind::usage, "this MPI's tags allow only " + std::to_string(set_.max_lane()) + " plans"));
    set_.lanes[result_.lane];
    return finish();
  }
  if (direct_) return start_direct();
  if (submission_.op == ReduceOp::adasum && submission_.kind == OpKind::allreduce) return begin_adasum();
  if (uses_shared_memory()) return way_of(told_) == InHost::messages ? meet() : run_in_host();
  const Elements e = elements();
  start_run(fixed_schedule(e), {submission_.input, submission_.output}, e, 1);
}

// Of messages alone: what shared memory cannot do, for lack of it, the ring does, and gives the same bits.
const AlgorithmRow& Operation::row() const {
  const AlgorithmRow& row = row_of(chosen_);
  return row.schedule ? row : row_of(Algorithm::ring);
}

// Ranks that differ in the bytes of a bucket, or in its half, may choose different algorithms.
bool Operation::all_choose_the_same() const {
  return lane_ == 0 || (set_.chooser.forced && has_halves(*set_.chooser.forced, set_.size()));
}

// Who exchange headers whatever their counts are, so that no rank waits for a header that the other does not send: with
// ranks that may choose another algorithm, everybody who is a partner in any.
std::vector<int> Operation::partners() const {
  std::vector<int> all;
  if (describes() || submission_.by_mpi || submission_.kind != OpKind::allreduce) return all;
  const auto may_choose = [&](Algorithm algorithm) { return !all_choose_the_same() || algorithm == chosen_; };
  for (const AlgorithmRow& row : algorithm_table()) {
    if (row.partners == nullptr || !may_choose(row.algorithm)) continue;
    const std::vector<int> some = row.partners(set_.size(), set_.rank());
    all.insert(all.end(), some.begin(), some.end());
  }
  if (set_.levels && may_choose(Algorithm::two_level)) {
    const Ring ring{static_cast<int>(set_.levels->ring.size()), set_.levels->host, set_.levels->ring};
    all.insert(all.end(), {ring.previous(), ring.next()});
  }
  return all;
}

Pipeline Operation::pipeline_of(Algorithm algorithm) const {
  const uint64_t count = submission_.count();
  if (algorithm == Algorithm::ring) return pipeline(count / set_.size(), submission_.dtype);
  if (algorithm != Algorithm::double_tree) return pipeline(count, submission_.dtype);
  Pipeline cut = pipeline(count / 2, submission_.dtype);
  cut.segment =
      std::min(cut.segment, std::max(kTreeSegmentBytes / size_of(submission_.dtype), count / 2 / kTreeSegments));
  return cut;
}

Schedule Operation::fixed_schedule(const Elements& e) const {
  const Submission& s = submission_;
  const uint64_t count = s.count();
  const int ranks = set_.size(), rank = set_.rank();
  const Arithmetic arithmetic{e.prescale != 1, e.divide != 1 || e.postscale != 1};
  const bool in_place = s.input == s.output;
  switch (s.kind) {
    case OpKind::allreduce:
      if (s.half != Half::both)
        return half_of(row().algorithm, s.half, ranks, rank, count, pipeline_of(row().algorithm), arithmetic);
      return row().schedule(ranks, rank, count, pipeline_of(row().algorithm), arithmetic, in_place);
    case OpKind::broadcast:
      return tree_broadcast(ranks, rank, s.root, count, pipeline(count, s.dtype), in_place);
    case OpKind::reducescatter: {
      std::vector<uint64_t> counts;
      for (int i = 0; i < ranks; ++i) {
        const Chunk rows = chunk_of(s.shape[0], ranks, i);
        counts.push_back((rows.end - rows.begin) * s.row_count());
      }
      return ring_reduce_scatter(rank, counts, pipeline(counts[0], s.dtype), arithmetic);
    }
    default:
      fail(ErrorKind::internal, "no fixed schedule for ", name_of(s.kind));
  }
}

uint64_t Operation::row_count() const { return describes() ? 1 : submission_.row_count(); }

// All-gather and all-to-all: first every rank tells its number of rows, then the data follow.
void Operation::run_sizes() {
  const int ranks = set_.size();
  const Pipeline one{1, static_cast<int>(options_.depth)};
  all_sizes_.assign(ranks, 0);
  Elements e;
  e.dtype = Dtype::int64;
  const std::vector<uint64_t> ones(ranks, 1);
  if (submission_.kind == OpKind::alltoall && !describes()) {
    my_sizes_.assign(submission_.splits.begin(), submission_.splits.end());
    start_run(pairwise_alltoall(set_.rank(), ones, ones, one), {my_sizes_.data(), all_sizes_.data()}, e, 0);
  } else {
    my_sizes_ = {static_cast<int64_t>(describes() ? description_.size() : submission_.shape[0])};
    start_run(ring_allgather(set_.rank(), ones, one), {my_sizes_.data(), all_sizes_.data()}, e, 0);
  }
}

// What the ranks have told of their rows.
void Operation::check_sizes() const {
  const uint64_t item = describes() ? 1 : size_of(submission_.dtype) * std::max<uint64_t>(1, row_count());
  uint64_t left = kMostBytes;
  for (size_t rank = 0; rank < all_sizes_.size(); ++rank) {
    const auto rows = static_cast<uint64_t>(all_sizes_[rank]);
    if (all_sizes_[rank] < 0 || rows > left / item)
      fail(ErrorKind::transport, "rank ", set_.name(), ": ", label(), ": rank ", set_.ranks[rank], " has told ",
           all_sizes_[rank], " rows, which no memory holds");
    left -= rows * item;
  }
}

void Operation::run_variable_data() {
  Elements e;
  e.dtype = describes() ? Dtype::uint8 : submission_.dtype;
  std::vector<uint64_t> counts;
  uint64_t total = 0, rows_of_all = 0;
  for (const int64_t rows : all_sizes_) {
    result_.rows.push_back(static_cast<uint64_t>(rows));
    counts.push_back(static_cast<uint64_t>(rows) * row_count());
    total += counts.back();
    rows_of_all += static_cast<uint64_t>(rows);
  }
  result_.output_bytes = total * size_of(e.dtype);
  if (direct_) return start_direct_rows();
  const bool stages = staged_ && !describes();
  const bool fits = submission_.output != nullptr && !describes() && submission_.room == result_.output_bytes;
  void* staged = stages ? staged_->output_of(rows_of_all, result_.output_bytes) : nullptr;
  if (!fits && !stages) result_.output.reset(new (std::nothrow) std::byte[std::max<uint64_t>(1, result_.output_bytes)]);
  if (result_.output) expect_writes(result_.output.get(), result_.output_bytes);
  void* output = stages ? staged : fits ? submission_.output : result_.output.get();
  const Memory memory{describes() ? description_.data() : submission_.input, output};
  // Without memory nothing is exchanged but that: moves for all of it would be as many as there is no memory for.
  const uint64_t most = output == nullptr ? 1 : kMostBytes;
  for (uint64_t& count : counts) count = std::min(count, most);
  if (submission_.kind == OpKind::alltoall && !describes()) {
    std::vector<uint64_t> mine;
    for (const uint64_t rows : submission_.splits) mine.push_back(std::min(rows * row_count(), most));
    // Every rank has other counts, and both ends of a channel must cut alike: the segment does not grow with them.
    start_run(pairwise_alltoall(set_.rank(), mine, counts, pipeline(0, e.dtype)), memory, e, 1);
  } else {
    const uint64_t longest = *std::max_element(counts.begin(), counts.end());
    start_run(ring_allgather(set_.rank(), counts, pipeline(longest, e.dtype)), memory, e, 1);
  }
  if (output == nullptr) run_->poison(no_output());
}

std::string Operation::no_output() const {
  return "rank " + std::to_string(set_.name()) + " has no memory for " + std::to_string(result_.output_bytes) +
         " bytes of output";
}

Neighbours Operation::neighbours() const {
  const Submission& s = submission_;
  if (describes()) return Neighbours::ring;
  if (s.kind == OpKind::broadcast) return Neighbours::of_schedule;
  if (s.kind == OpKind::alltoall) return Neighbours::mutual;
  return s.by_mpi && Direct::reduces(s) ? Neighbours::all : Neighbours::ring;
}

void Operation::start_run(Schedule schedule, Memory memory, Elements e, uint32_t part, Shared shared) {
  const OpKind kind = submission_.kind;
  const bool in_host = set_.one_host() && !shared.mates.empty();  // then there are no messages
  const bool in_two_levels =
      kind == OpKind::allreduce && chosen_ == Algorithm::two_level && all_choose_the_same() && !submission_.by_mpi;
  const bool swaps = adasum_level_ >= 0;
  const bool on_gpu = submission_.by_mpi && part > 0 && !describes();  // where this CPU cannot look
  const bool checks = set_.checks_messages && set_.size() > 1 && !in_host && !on_gpu;
  by_bell_ = in_host;
  std::unique_ptr<Pieces> pieces = pieces_of(schedule);
  run_ = std::make_unique<Run>(
      std::move(schedule), memory, e, header(e, part, checks), set_.tag(lane_, sequence()), kLongestMessage,
      in_host || in_two_levels || swaps ? Neighbours::of_schedule : neighbours(),
      in_host || swaps ? std::vector<int>() : partners(), *set_.data, std::move(shared), std::move(pieces));
  if (std::exchange(flips_, false)) run_->flip_what_comes();
}

// The others must hear that this rank cannot.
void Operation::poison(const std::string& why) {
  start_run({}, {}, elements(), 1);
  run_->poison(why);
}

// In pieces of about a segment: casts then overlap with transfers, and the caches hold what is cast.
std::unique_ptr<Pieces> Operation::pieces_of(const Schedule& schedule) const {
  const Submission& s = submission_;
  if (describes() || !(s.wide || (staged_ && staged_->in_pieces()))) return nullptr;
  const uint64_t piece = pipeline_of(row().algorithm).segment;
  if (staged_) return staged_->pieces(schedule, piece);
  return std::make_unique<Casts>(schedule, s.wide, s.output, s.dtype, s.count(), piece);
}

Header Operation::header(const Elements& e, uint32_t part, bool checks) const {
  const Submission& s = submission_;
  uint64_t scale[2];
  std::memcpy(&scale[0], &s.prescale, 8);
  std::memcpy(&scale[1], &s.postscale, 8);
  Header h;
  h.generation = generation_;
  h.process_set = static_cast<uint32_t>(set_.id);
  h.root = s.root;
  h.digest = s.lane >= 0 ? s.plan_digest : s.key;
  h.sequence = sequence();
  h.count = describes() ? 0 : s.first_may_differ() ? s.row_count() : s.count();
  h.scale = Digest().add(scale[0]).add(scale[1]).value();
  h.bucket = s.bucket;
  h.part = part_ + part;
  h.kind = static_cast<uint8_t>(s.kind);
  h.half = static_cast<uint8_t>(s.half);
  h.dtype = static_cast<uint8_t>(e.dtype);
  h.op = static_cast<uint8_t>(s.op);
  if (checks) h.flags |= Header::kChecksum;
  if (s.on_gpu && !describes()) h.flags |= Header::kOnGpu;
  if (describes()) {  // the ranks differ: only the name and the place in the order are the same
    h.root = -1;
    h.scale = h.kind = h.op = 0;
  }
  return h;
}

void Operation::run_finished() {
  leave_memory();
  if (!run_->error().empty()) {
    done_ = true;
    error_ = Error(ErrorKind::peer, "rank " + std::to_string(set_.name()) + ": " + label() +
                                        " failed: " + run_->error() + set_.because());
    return;
  }
  if ((describes() || submission_.first_may_differ()) && !sizes_known_) {
    sizes_known_ = true;
    check_sizes();
    if (!submission_.by_nccl) return run_variable_data();
    result_.rows.assign(all_sizes_.begin(), all_sizes_.end());
    done_ = true;
    return;
  }
  if (describes()) return described();
  if (direct_) return direct_run_finished();
  if (adasum_level_ >= 0) return end_adasum_level();
  finish();
}

void Operation::finish() {
  done_ = true;
  if (staged_) result_.completed = staged_->finish();
  if (direct_) result_.completed = direct_->finish();
}

void Operation::deliver() {
  if (error_)
    submission_.handle->fail(*error_);
  else
    submission_.handle->finish(std::move(result_));
}

void Operation::give_up(const Error& error) {
  if (run_) run_->abandon();
  if (damage_) set_.meetings().abandon(*std::exchange(damage_, nullptr));
  done_ = true;
  error_ = error;
  submission_.handle->give_up_memory();
}

}  // namespace ringdp
