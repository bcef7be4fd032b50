// How ranks agree: each comes to a meeting (agree/meetings.h) with what was submitted to it. A small tensor goes along, and
// then nothing else is exchanged; in a host, of a large one goes along where it is (engine/whereabouts.h).
#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "engine/engine.h"
#include "kernels/copy.h"
#include "kernels/kernels.h"
#include "world/gpus.h"

namespace ringdp {

namespace {

// Operations that may hold shared memory before all have come to them; those beyond take it when they start.
constexpr int kMostWithMemory = ProcessSet::kWindowInHost;

// A vote's words: the smaller one of each.
void merge_votes(std::byte* mine, const std::byte* theirs, size_t bytes) {
  for (size_t at = 0; at < bytes; at += sizeof(uint64_t)) {
    uint64_t a, b;
    std::memcpy(&a, mine + at, sizeof a);
    std::memcpy(&b, theirs + at, sizeof b);
    if (b < a) std::memcpy(mine + at, &b, sizeof b);
  }
}

}  // namespace

// --- coming to a meeting -------------------------------------------------------------------------------------------

// Between hosts, where the tensor would be exchanged in the same way, and added in the same order, after the meeting.
bool Engine::fits_note(const Submission& s, const ProcessSet& set) const {
  const uint64_t bytes = s.count() * size_of(s.dtype);
  if (s.kind != OpKind::allreduce || s.on_gpu || s.op == ReduceOp::adasum || bytes > options_.letter_bytes)
    return false;
  return set.one_host() ? !set.chooser.forces_messages()
                        : set.chooser.choose(bytes, s.dtype) == Algorithm::recursive_doubling;
}

bool Engine::ends_with_meeting(const Submission& s, const ProcessSet& set) const {
  return s.kind == OpKind::barrier || s.kind == OpKind::join || fits_note(s, set);
}

bool Engine::tells_places(const Submission& s, const ProcessSet& set) const {
  const bool comes_to_it = !s.on_gpu || (set.gpus && set.gpus->way == Gpus::Way::host && !s.in_graph);
  return s.kind == OpKind::allreduce && comes_to_it && s.op != ReduceOp::adasum && set.reduces_in_shared_memory() &&
         !fits_note(s, set);
}

bool Engine::casts_under_way(int process_set, uint64_t bytes, Dtype dtype) {
  std::lock_guard lock(mutex_);
  return known_.count(process_set) > 0 && casts_under_way(known_.at(process_set), bytes, dtype);
}

bool Engine::casts_under_way(const Chooser& chooser, uint64_t bytes, Dtype dtype) const {
  const Algorithm chosen = chooser.choose(bytes, dtype);
  if (bytes <= options_.letter_bytes && chosen == Algorithm::recursive_doubling) return false;
  return chooser.forces_messages() || (chooser.placement.ranks > 1 && chosen != Algorithm::shared_memory);
}

void Engine::tell(Submission&& s, ProcessSet& set) {
  s.handle->enter(Stage::agree);
  timeline_.stamp(s.came.agree);
  inject(Stage::agree, s);
  Note note;
  note.topic = Meetings::named;
  note.key = s.key;
  note.lane = s.era;
  note.signature = in_generation(generation_, s.signature());
  if (s.awaits_joined || s.kind == OpKind::join) note.flags = Note::kAwaits;
  if (set.draws_tickets()) {
    const auto ticket = set.tickets.draw(s.kind == OpKind::open_plan);
    if (!ticket) {
      release_name(s);
      return s.handle->fail(Error(ErrorKind::usage, "rank " + std::to_string(set.name()) + ": " +
                                                        std::to_string(set.named_tags()) +
                                                        " named operations are in flight, and this MPI's tags allow no "
                                                        "more; wait for some first"));
    }
    note.ticket = *ticket;
  }
  std::byte scaled[Mail::kMostPayload];
  const void* payload = s.input;
  if (fits_note(s, set)) {
    const Elements e = elements_of(s, set.size());
    note.bytes = static_cast<uint32_t>(s.count() * size_of(s.dtype));
    if (e.prescale != 1) e.begin(scaled, s.input, s.count()), payload = scaled;
  }
  Whereabouts mine;
  if (tells_places(s, set) && set.with_memory < kMostWithMemory) {
    take_memory(mine, set, s, options_, false);
    note.bytes = sizeof mine;
    payload = &mine;
  }
  set.meetings().come(note, payload, agreeing_.add(std::move(s)));
}

void Engine::begin_vote(ProcessSet& set, int lane_id) {
  Lane& lane = set.lanes[lane_id];
  Counters::add(counters_.votes);
  const std::vector<uint64_t>& words = lane.votes.front().words;
  Note note;
  note.topic = Meetings::vote;
  note.lane = static_cast<uint32_t>(lane_id);
  note.key = lane.votes_begun++;
  note.bytes = static_cast<uint32_t>(words.size() * sizeof words[0]);
  note.signature = in_generation(generation_, note.bytes);
  set.meetings().come(note, words.data(), static_cast<uint64_t>(lane_id));
}

// What the ranks of a host have told is as long as what this rank has: all have agreed on it.
void Engine::check_lengths(const ProcessSet& set, const Meetings::Meeting& meeting) {
  for (size_t member = 0; member < meeting.from.size(); ++member)
    if (meeting.from[member].payload.size() != meeting.mine.bytes)
      fail(ErrorKind::transport, "rank ", set.name(), ": rank ", set.ranks[member], " has told ",
           meeting.from[member].payload.size(), " bytes where ", meeting.mine.bytes, " are agreed on");
}

// Two payloads of a meeting on their way to all.
void Engine::merge(const Meetings::Meeting& meeting, std::byte* mine, const std::byte* theirs, bool mine_is_left) {
  if (meeting.mine.topic == Meetings::damage) return merge_damage(mine, theirs);
  if (meeting.mine.topic != Meetings::named) return merge_votes(mine, theirs, meeting.mine.bytes);
  const Submission* s = agreeing_.find(meeting.token);
  RINGDP_CHECK(s != nullptr);
  kernels::reduce(s->dtype, s->op, mine, mine_is_left ? mine : theirs, mine_is_left ? theirs : mine, s->count());
}

// --- when all have come --------------------------------------------------------------------------------------------

bool Engine::listen(ProcessSet& set) {
  bool moved = set.letters && set.letters->poll();
  if (!set.one_host()) moved |= set.doubling.poll();
  Meetings& meetings = set.meetings();
  while (Meetings::Meeting* meeting = meetings.next_complete()) {
    moved = true;
    const uint32_t topic = meeting->mine.topic;
    if (meeting->for_nobody)
      met_by_others(set, *meeting);
    else if (topic == Meetings::named)
      met(set, *meeting);
    else if (topic == Meetings::vote)
      counted(set, *meeting);
    else if (topic == Meetings::bucket || topic == Meetings::order)
      launch_met(set, *meeting);
  }
  return moved;
}

void Engine::met(ProcessSet& set, Meetings::Meeting& meeting) {
  const uint64_t token = meeting.token, ticket = meeting.ticket, drawn = meeting.mine.ticket;
  const int left = meeting.left;
  const bool agreed = meeting.agreed, joined = meeting.joined;
  Submission* found = agreeing_.find(token);
  RINGDP_CHECK(found != nullptr);
  Submission& s = *found;
  Result result;
  if (s.kind == OpKind::join) {
    set.meetings().end_join();
    set.unnamed = 0;
    result.words = {std::exchange(set.since_join, 0)};
  }
  if (agreed && !joined && ends_with_meeting(s, set)) {
    if (s.kind == OpKind::allreduce) set.one_host() ? sum_letters(s, set, meeting) : take_sum(s, set, meeting);
    set.meetings().close(meeting);
    ended(s, set, drawn);  // before anybody hears of the end: who has waited for a name may use it again at once
    s.handle->finish(std::move(result));
    agreeing_.erase(token);
    return;
  }
  std::vector<Whereabouts> told;
  if (tells_places(s, set)) told = told_in(meeting);
  set.meetings().close(meeting);
  if ((!agreed || joined) && !told.empty()) give_back(std::exchange(told, {})[set.letters->me()], set);
  if (left >= 0) {
    ended(s, set, drawn);
    s.handle->fail(peer_left(s, set, left));
    agreeing_.erase(token);
    return;
  }
  if (ticket == Note::kNoTicket) {
    ended(s, set, drawn);
    s.handle->fail(
        Error(ErrorKind::usage, "rank " + std::to_string(rank_) + ": too many named operations are in flight"));
    agreeing_.erase(token);
    return;
  }
  Submission starts = std::move(s);
  agreeing_.erase(token);
  const Describe describe = !agreed ? Describe::difference : joined ? Describe::to_joined : Describe::no;
  start(std::move(starts), set, ticket, describe, std::move(told));
}

// This rank has joined: it hears from the others what it is.
void Engine::met_by_others(ProcessSet& set, Meetings::Meeting& meeting) {
  Submission s;
  s.process_set = set.id;
  s.key = meeting.mine.key;
  s.absent = true;
  s.divides_by_active = set.divides_by_active;
  s.handle = std::make_shared<Handle>();
  const uint64_t ticket = meeting.ticket;
  const bool agreed = meeting.agreed;
  set.meetings().close(meeting);
  if (ticket == Note::kNoTicket) return;
  start(std::move(s), set, ticket, agreed ? Describe::to_joined : Describe::difference);
}

// Chunk by chunk in the order of the ring, i+1, i+2, …, i: so a tensor has the same sum whichever way it goes in a host.
void Engine::sum_letters(const Submission& s, const ProcessSet& set, const Meetings::Meeting& meeting) {
  check_lengths(set, meeting);
  const int ranks = set.size();
  const size_t item = size_of(s.dtype);
  for (int chunk = 0; chunk < ranks; ++chunk) {
    const auto [begin, end] = chunk_of(s.count(), ranks, chunk);
    if (begin == end) continue;
    const auto from = [&, at = begin * item](int rank) { return meeting.from[rank % ranks].payload.data() + at; };
    std::byte* to = static_cast<std::byte*>(s.output) + begin * item;
    const std::byte* sum = from(chunk + 1);
    for (int next = 2; next <= ranks; ++next, sum = to)
      kernels::reduce(s.dtype, s.op, to, from(chunk + next), sum, end - begin);
    if (sum != to) kernels::copy(to, sum, (end - begin) * item);
  }
  elements_of(s, ranks).finish(s.output, s.output, s.count());
}

void Engine::take_sum(const Submission& s, const ProcessSet& set, const Meetings::Meeting& meeting) {
  RINGDP_CHECK(meeting.merged.size() == meeting.mine.bytes);
  kernels::copy(s.output, meeting.merged.data(), meeting.merged.size());
  elements_of(s, set.size()).finish(s.output, s.output, s.count());
}

// What all ranks have said together: the smaller word of each. Nothing if they do not agree.
std::vector<uint64_t> Engine::merged_words(const ProcessSet& set, Meetings::Meeting& meeting) {
  if (!meeting.agreed) return {};
  check_lengths(set, meeting);
  std::vector<std::byte> merged = std::move(meeting.merged);
  for (const Meetings::Received& one : meeting.from) {
    if (merged.empty()) merged = one.payload;
    merge_votes(merged.data(), one.payload.data(), merged.size());
  }
  std::vector<uint64_t> words(merged.size() / sizeof(uint64_t));
  if (!words.empty()) std::memcpy(words.data(), merged.data(), words.size() * sizeof words[0]);
  return words;
}

void Engine::counted(ProcessSet& set, Meetings::Meeting& meeting) {
  const int lane_id = static_cast<int>(meeting.token);
  Lane& lane = set.lanes[lane_id];
  const bool agreed = meeting.agreed;
  Result result;
  result.words = merged_words(set, meeting);
  set.meetings().close(meeting);
  if (lane.votes.empty()) return;  // given up here
  if (!agreed)
    return fail_votes(lane, Error(ErrorKind::mismatch,
                                  "rank " + std::to_string(rank_) + ": the votes of plan " + std::to_string(lane_id) +
                                      " have other lengths on other ranks, or are of another generation"));
  lane.votes.front().handle->finish(std::move(result));
  lane.votes.pop_front();
  if (!lane.votes.empty()) begin_vote(set, lane_id);
}

// --- leaving -------------------------------------------------------------------------------------------------------

// What others wait for here goes on without its caller: they may have counted on it already.
void Engine::leave(ProcessSet& set) {
  if (set.left) return;
  set.left = true;
  agreeing_.for_each([&](uint64_t, Submission& s) {
    if (s.process_set == set.id) s.handle->give_up_memory(), s.handle->fail(closed_error());
  });
  set.meetings().leave(false, steps_);
  if (set.letters && !set.one_host()) set.letters->leave(false, steps_);
}

}  // namespace ringdp
