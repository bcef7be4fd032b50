// How ranks of one host agree: each tells all others by letter what was submitted to it (agree/letters.h). A small tensor
// goes along, and then nothing else is exchanged; of a large one goes along where it is (engine/whereabouts.h).
#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "engine/engine.h"
#include "kernels/copy.h"
#include "kernels/kernels.h"

namespace ringdp {

namespace {

// Operations that may hold shared memory before all have come to them; those beyond take it when they start.
constexpr int kMostWithMemory = ProcessSet::kWindowInHost;

}  // namespace

bool Engine::fits_letter(const Submission& s) const {
  return s.kind == OpKind::allreduce && !chooser_.forces_messages() &&
         s.count() * size_of(s.dtype) <= options_.letter_bytes;
}

bool Engine::goes_through_shared_memory(const Submission& s) const {
  return s.kind == OpKind::allreduce && !chooser_.forces_messages() && !fits_letter(s) && size_ > 1;
}

void Engine::tell(Submission&& s, ProcessSet& set) {
  s.handle->enter(Stage::agree);
  Letter letter;
  letter.topic = Letters::named;
  letter.key = s.key;
  letter.signature = s.signature();
  letter.ticket = set.named++;
  std::byte scaled[Mail::kMostPayload];
  const void* payload = s.input;
  if (fits_letter(s)) {
    const Elements e = elements_of(s, set.size());
    letter.bytes = static_cast<uint32_t>(s.count() * size_of(s.dtype));
    if (e.prescale != 1) e.begin(scaled, s.input, s.count()), payload = scaled;
  }
  Whereabouts mine;
  if (goes_through_shared_memory(s) && set.with_memory < kMostWithMemory) {
    take_memory(mine, set, s, options_, false);
    letter.bytes = sizeof mine;
    payload = &mine;
  }
  Letters::Meeting& meeting = set.letters->come(letter, payload, agreeing_.add(std::move(s)));
  if (set.letters->lacks_one_that_left(meeting)) fail_what_lacks_one_that_left(set);
}

bool Engine::read_letters(ProcessSet& set) {
  const int left_before = set.letters->left();
  const bool moved = set.letters->poll([&](Letters::Topic topic, Letters::Meeting& meeting) {
    if (topic == Letters::named) met(set, meeting);
    if (topic == Letters::vote) counted(set, meeting);
  });
  if (set.letters->left() != left_before) fail_what_lacks_one_that_left(set);
  return moved;
}

// All ranks have submitted it. The sequence is the first member's ticket: every rank reads the same.
void Engine::met(ProcessSet& set, Letters::Meeting& meeting) {
  const uint64_t token = meeting.token;
  Submission* found = agreeing_.find(token);
  RINGDP_CHECK(found != nullptr);
  Submission& s = *found;
  const uint64_t sequence = meeting.from[0].letter.ticket;
  const bool agreed = meeting.agreed();
  if (!agreed || !(fits_letter(s) || s.kind == OpKind::barrier)) {
    std::vector<Whereabouts> told;
    if (goes_through_shared_memory(s)) told = told_in(meeting);
    set.letters->close(meeting);
    if (!agreed && !told.empty()) give_back(std::exchange(told, {})[set.letters->me()], set);
    Submission starts = std::move(s);
    agreeing_.erase(token);
    return start(std::move(starts), set, sequence, !agreed, std::move(told));
  }
  if (s.kind == OpKind::allreduce) sum_letters(s, set, meeting);
  set.letters->close(meeting);
  release_name(s);  // before anybody hears of the end: who has waited for a name may use it again at once
  s.handle->finish();
  agreeing_.erase(token);
}

// Chunk by chunk in the order of the ring, i+1, i+2, …, i: so a tensor has the same sum whichever way it goes.
void Engine::sum_letters(const Submission& s, const ProcessSet& set, const Letters::Meeting& meeting) {
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

void Engine::counted(ProcessSet& set, Letters::Meeting& meeting) {
  const int lane_id = static_cast<int>(meeting.token);
  Lane& lane = set.lanes[lane_id];
  Result result;
  for (const Letters::Received& one : meeting.from) {
    std::vector<uint64_t> words(one.payload.size() / sizeof(uint64_t));
    std::memcpy(words.data(), one.payload.data(), one.payload.size());
    if (result.words.empty()) result.words = words;
    for (size_t i = 0; i < std::min(words.size(), result.words.size()); ++i)
      result.words[i] = std::min(result.words[i], words[i]);
  }
  set.letters->close(meeting);
  if (lane.votes.empty()) return;  // given up here
  lane.votes.front().handle->finish(std::move(result));
  lane.votes.pop_front();
  if (!lane.votes.empty()) begin_vote(set, lane_id);
}

// What others wait for here goes on without its caller: they may have counted on it already.
void Engine::leave_by_letter(ProcessSet& set) {
  if (set.left) return;
  set.left = true;
  agreeing_.for_each([&](uint64_t, Submission& s) {
    if (s.process_set == set.id) s.handle->give_up_memory(), s.handle->fail(closed_error());
  });
  set.letters->leave();
}

void Engine::fail_what_lacks_one_that_left(ProcessSet& set) {
  std::vector<Letters::Meeting*> lacking;
  set.letters->for_each_open([&](Letters::Topic topic, Letters::Meeting& meeting) {
    if (topic == Letters::named && set.letters->lacks_one_that_left(meeting)) lacking.push_back(&meeting);
  });
  for (Letters::Meeting* meeting : lacking) {
    const uint64_t token = meeting->token;
    Submission* s = agreeing_.find(token);
    if (s != nullptr && goes_through_shared_memory(*s)) give_back(told_in(*meeting)[set.letters->me()], set);
    set.letters->close(*meeting);
    if (s == nullptr) continue;
    release_name(*s);
    s->handle->fail(peer_left(*s, set));
    agreeing_.erase(token);
  }
}

// A process that has ended without leaving takes everything along: its ranks' memory may be half written.
void Engine::look_for_dead() {
  if (!host_) return;
  for (const Host::Dead& dead : host_->find_dead()) {
    bool has_left = true;
    for (auto& [id, set] : sets_) {
      if (!set->letters) continue;
      read_letters(*set);  // it may have said so just before
      has_left &= set->letters->has_left(dead.rank);
    }
    if (has_left || left_) continue;
    throw Error(ErrorKind::peer, "rank " + std::to_string(rank_) + ": rank " + std::to_string(dead.rank) +
                                     " (process " + std::to_string(dead.pid) +
                                     " on this host) has ended without ringdp.shutdown()");
  }
}

}  // namespace ringdp
