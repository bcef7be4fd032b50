#include "engine/operation.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "agree/digest.h"
#include "base/check.h"
#include "collectives/adasum.h"
#include "collectives/halves.h"
#include "collectives/neutral.h"
#include "collectives/ring.h"
#include "submit/differences.h"

namespace ringdp {

namespace {

// What a rank that has joined tells: averages are divided by the number of all ranks, or of those that have not.
const std::string kAbsent = "joined", kAbsentNotCounted = "joined, not counted";

// Not of the form of either: it begins with the length of a name.
std::string description_of(const Submission& s, Describe describe) {
  if (describe == Describe::no) return "";
  if (s.absent) return s.divides_by_active ? kAbsentNotCounted : kAbsent;
  return describe == Describe::difference ? s.description() : s.encoded();
}

}  // namespace

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
      deadline_(Deadline::in(Seconds(options.timeout))),
      chosen_(algorithm_of_half(submission_.half, choose(), set.size())),
      divisor_(submission_.divides_by > 0 ? submission_.divides_by : set.size()),
      told_(std::move(told)) {}

Algorithm Operation::choose() const {
  const Submission& s = submission_;
  const uint64_t bytes = s.count() * size_of(s.dtype);
  const bool by_nccl_maybe = s.on_gpu && s.half != Half::both;
  return by_nccl_maybe ? set_.chooser.choose_in_one_level(bytes, s.dtype) : set_.chooser.choose(bytes, s.dtype);
}

std::string Operation::label() const {
  if (submission_.lane >= 0) return submission_.bucket_name();
  return std::string(name_of(submission_.kind)) + " '" + submission_.name + "'";
}

bool Operation::progress() {
  if (done_) return false;
  bool moved = !begun_;
  if (!begun_) begin();
  if (awaited_) moved |= arrive();
  if (meeting_ && meeting_->complete) met();
  if (run_) moved |= run_->progress();
  if (run_ && run_->done()) {
    run_finished();
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

// The same on all ranks of the host, also where they differ in the bytes of a bucket, by which an algorithm is chosen: their
// letters show it.
bool Operation::uses_shared_memory() const {
  if (submission_.kind != OpKind::allreduce || submission_.op == ReduceOp::adasum) return false;
  if (set_.one_host() || set_.chooser.forces_messages()) return set_.reduces_in_shared_memory();
  return set_.levels && (chosen_ == Algorithm::two_level || !all_choose_the_same());
}

// The ranks of the host have not told each other all that is needed, when they agreed on a name: now they do.
void Operation::meet() {
  const Submission& s = submission_;
  const bool has_told = !told_.empty();
  told_.resize(set_.letters->members().size());
  Whereabouts& mine = told_[set_.letters->me()];
  take_memory(mine, set_, s, options_, has_told || lane_ > 0);
  Note note;
  note.topic = Meetings::place;
  note.lane = static_cast<uint32_t>(lane_);
  note.key = sequence();
  note.bytes = sizeof mine;
  note.signature = s.lane < 0 ? s.signature() : Digest().add(s.plan_digest).add(s.bucket).add(s.signature()).value();
  if (!refusal_.empty()) note.flags |= Note::kPoison;
  Counters::add(counters_.places);
  meeting_ = &set_.letters->come(note, &mine, 0);
}

void Operation::met() {
  const bool agreed = meeting_->agreed;
  if (agreed) told_ = told_in(*meeting_);
  set_.letters->close(*meeting_);
  meeting_ = nullptr;
  if (agreed) return run_in_host();
  const std::string why =
      refusal_.empty() ? "another rank of this host means another operation, or has given up" : refusal_;
  if (!set_.one_host()) return poison(why);  // the other hosts must hear of it
  done_ = true;
  error_ = Error(ErrorKind::peer, "rank " + std::to_string(set_.name()) + ": " + label() + " failed: " + why);
  leave_memory();
}

// This rank cannot carry it out: the others hear of it where they wait for it, in a meeting or in the exchange.
void Operation::refuse(const std::string& why) {
  refusal_ = why;
  if (!uses_shared_memory()) return poison(why);
  if (way_of(told_) == InHost::messages) return meet();
  run_in_host();
  run_->poison(why);
}

void Operation::poison(const std::string& why) {
  start_run({}, {}, elements(), 1);
  run_->poison(why);
}

// Where some rank has no shared memory left, all of the host see it, and take messages, which give the same bits.
void Operation::run_in_host() {
  const Elements e = elements();
  const Memory memory{submission_.input, submission_.output};
  const InHost way = set_.one_host() || chosen_ == Algorithm::two_level ? way_of(told_) : InHost::messages;
  Schedule schedule = in_host_schedule(way, {e.prescale != 1, e.divide != 1 || e.postscale != 1});
  start_run(std::move(schedule), memory, e, 1, way == InHost::messages ? Shared{} : shared());
}

Schedule Operation::in_host_schedule(InHost way, Arithmetic arithmetic) const {
  const uint64_t count = submission_.count();
  const Dtype dtype = submission_.dtype;
  const Half half = submission_.half;
  if (set_.one_host()) {
    const Pipeline cut = cut_for_shared_memory(dtype, options_);
    if (way == InHost::direct) return shared_allreduce_direct(set_.size(), set_.rank(), count, cut, arithmetic, half);
    if (way == InHost::staged) return shared_allreduce_staged(set_.size(), set_.rank(), count, cut, arithmetic, half);
  } else if (chosen_ == Algorithm::two_level) {
    const Pipeline cut = cut_for_two_levels(*set_.levels, count, dtype, options_);
    if (way == InHost::direct) return two_level_direct(*set_.levels, count, cut, arithmetic, half);
    if (way == InHost::staged) return two_level_staged(*set_.levels, count, cut, arithmetic, half);
    return two_level_messages(*set_.levels, count, cut, arithmetic, half);
  }
  return fixed_schedule(elements());
}

Shared Operation::shared() const {
  const Letters& letters = *set_.letters;
  const Host& host = *letters.host();
  Shared shared;
  shared.me = static_cast<size_t>(letters.me());
  for (size_t member = 0; member < told_.size(); ++member) {
    const int rank = letters.members()[member], place = letters.places()[member];
    const auto mapped = [&](uint64_t offset) { return offset == Heap::kNowhere ? nullptr : host.at(place, offset); };
    const Whereabouts& told = told_[member];
    shared.mates.push_back({rank, mapped(told.output), mapped(told.area), &Counts::at(mapped(told.counts)), told.base});
  }
  shared.ring = [&letters] { letters.ring(); };
  return shared;
}

// Nobody reads or writes this rank's memory any more. After a failure the counts keep the mark of it for those who have
// still to see it: they are not used again.
void Operation::leave_memory() {
  if (told_.empty()) return;
  const bool has_failed = run_ && !run_->error().empty();
  give_back(told_[set_.letters->me()], set_, !has_failed);
  told_.clear();
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

void Operation::run_variable_data() {
  Elements e;
  e.dtype = describes() ? Dtype::uint8 : submission_.dtype;
  std::vector<uint64_t> counts;
  uint64_t total = 0, rows_of_all = 0;
  for (const int64_t rows : all_sizes_) {
    RINGDP_CHECK(rows >= 0);
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
  void* output = stages ? staged : fits ? submission_.output : result_.output.get();
  const Memory memory{describes() ? description_.data() : submission_.input, output};
  if (submission_.kind == OpKind::alltoall && !describes()) {
    std::vector<uint64_t> mine;
    for (const uint64_t rows : submission_.splits) mine.push_back(rows * row_count());
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
  by_bell_ = in_host;
  std::unique_ptr<Pieces> pieces = pieces_of(schedule);
  run_ = std::make_unique<Run>(
      std::move(schedule), memory, e, header(e, part), set_.tag(lane_, sequence()), kLongestMessage,
      in_host || in_two_levels || swaps ? Neighbours::of_schedule : neighbours(),
      in_host || swaps ? std::vector<int>() : partners(), *set_.data, std::move(shared), std::move(pieces));
}

// In pieces of about a segment: casts then overlap with transfers, and the caches hold what is cast.
std::unique_ptr<Pieces> Operation::pieces_of(const Schedule& schedule) const {
  const Submission& s = submission_;
  if (describes() || !(s.wide || (staged_ && staged_->in_pieces()))) return nullptr;
  const uint64_t piece = pipeline_of(row().algorithm).segment;
  if (staged_) return staged_->pieces(schedule, piece);
  return std::make_unique<Casts>(schedule, s.wide, s.output, s.dtype, s.count(), piece);
}

Header Operation::header(const Elements& e, uint32_t part) const {
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
    error_ =
        Error(ErrorKind::peer, "rank " + std::to_string(set_.name()) + ": " + label() + " failed: " + run_->error());
    return;
  }
  if ((describes() || submission_.first_may_differ()) && !sizes_known_) {
    sizes_known_ = true;
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

// In exchange k a rank and the one whose number differs in bit k swap what they have, and both form the same Adasum of the
// two. The whole tensor is needed for its products, so nothing is pipelined but the swap.
void Operation::begin_adasum() {
  const Submission& s = submission_;
  elements().begin(s.output, s.input, s.count());
  theirs_.resize(s.count() * size_of(s.dtype));
  begin_adasum_level(0);
}

void Operation::begin_adasum_level(int level) {
  const Submission& s = submission_;
  if (1 << level >= set_.size()) {
    elements().finish(s.output, s.output, s.count());
    return finish();
  }
  adasum_level_ = level;
  Elements e;
  e.dtype = s.dtype;
  start_run(swap(set_.rank() ^ 1 << level, s.count(), pipeline(s.count(), s.dtype)), {s.output, theirs_.data()}, e,
            static_cast<uint32_t>(1 + level));
}

void Operation::end_adasum_level() {
  const Submission& s = submission_;
  const bool mine_first = !(set_.rank() >> adasum_level_ & 1);
  const void *mine = s.output, *theirs = theirs_.data();
  adasum(s.dtype, s.output, mine_first ? mine : theirs, mine_first ? theirs : mine, s.count());
  run_.reset();
  begin_adasum_level(adasum_level_ + 1);
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
  done_ = true;
  error_ = error;
  submission_.handle->give_up_memory();
}

// What every rank has told of its submission.
std::vector<std::string> Operation::descriptions() const {
  const char* text = reinterpret_cast<const char*>(result_.output.get());
  std::vector<std::string> descriptions;
  for (const uint64_t length : result_.rows) {
    descriptions.emplace_back(text, length);
    text += length;
  }
  return descriptions;
}

std::string Operation::disagreement(const std::vector<std::string>& descriptions) const {
  return "rank " + std::to_string(set_.name()) + ": '" + submission_.name +
         "' differs between ranks; nothing was exchanged:" + differences(descriptions, set_.ranks);
}

// Ranks that have joined have told nothing but that.
void Operation::described() {
  const std::vector<std::string> all = descriptions();
  const Describe why = std::exchange(describe_, Describe::no);
  result_ = {};
  if (why == Describe::difference) {
    done_ = true;
    error_ = Error(ErrorKind::mismatch, disagreement(all));
    return;
  }
  int active = 0;
  bool divides_by_active = false;
  const std::string* encoded = nullptr;
  for (const std::string& one : all) {
    divides_by_active |= one == kAbsentNotCounted;
    if (one == kAbsent || one == kAbsentNotCounted) continue;
    ++active;
    encoded = &one;
  }
  RINGDP_CHECK(encoded != nullptr);
  if (divides_by_active) divisor_ = active;
  if (submission_.absent) take_part(*encoded);
  const Submission& s = submission_;
  const auto is_absent = [&](int rank) { return all[rank] == kAbsent || all[rank] == kAbsentNotCounted; };
  const bool lacks_root = s.kind == OpKind::broadcast && is_absent(s.root);
  if (lacks_root || s.kind == OpKind::alltoall || s.kind == OpKind::open_plan) {
    int rank = lacks_root ? s.root : 0;
    while (!is_absent(rank)) ++rank;
    done_ = true;
    error_ =
        Error(ErrorKind::peer, "rank " + std::to_string(set_.name()) + ": " + label() + " cannot complete: rank " +
                                   std::to_string(set_.ranks[rank]) + " has joined, and has nothing to contribute");
    return;
  }
  run_.reset();
  sizes_known_ = false;
  part_ = 2;
  begin();
}

// As one that has submitted it, too, with what changes nothing.
void Operation::take_part(const std::string& encoded) {
  Submission mine = Submission::decoded(encoded);
  mine.process_set = submission_.process_set;
  mine.key = submission_.key;
  mine.absent = true;
  mine.handle = submission_.handle;
  submission_ = std::move(mine);
  Submission& s = submission_;
  if (s.first_may_differ()) s.shape[0] = 0;
  chosen_ = choose();
  const uint64_t bytes = s.count() * size_of(s.dtype);
  scratch_.resize(s.kind == OpKind::reducescatter ? 2 * bytes : bytes);
  s.input = s.output = scratch_.data();
  if (s.kind == OpKind::reducescatter) s.output = scratch_.data() + bytes;
  if (s.kind == OpKind::allreduce || s.kind == OpKind::reducescatter)
    fill_neutral(scratch_.data(), s.count(), s.dtype, s.op);
}

}  // namespace ringdp
