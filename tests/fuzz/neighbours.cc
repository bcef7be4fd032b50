// A whole engine, whose peer on the same host writes letters as an input says: what it has submitted, where its memory is.
//
// An input: which operations this rank submits, then letters, each after which this rank takes turns. The peer's counts of
// progress stand at the end from the beginning, so that nothing waits for it and whatever memory it has told of is used.
#include <algorithm>
#include <deque>
#include <memory>
#include <vector>

#include "engine/engine.h"
#include "engine/whereabouts.h"
#include "fuzz.h"
#include "transport/local.h"

using namespace ringdp;
using namespace ringdp::fuzz;

namespace {

constexpr int kMost = 50;           // letters of an input
constexpr uint64_t kLarge = 5000;   // elements that do not go along with their name
constexpr double kPatience = 1000;  // seconds: nothing here waits for a deadline
constexpr uint64_t kEnd = uint64_t{1} << 40;

Submission submission(const std::string& name, uint64_t count) {
  Submission s;
  s.name = name;
  s.kind = count == 0 ? OpKind::barrier : OpKind::allreduce;
  if (count > 0) s.shape = {count};
  return s;
}

// Made once: to reserve it takes longer than all that an input does.
struct HostMemory {
  HostMemory() {
    for (int r = 0; r < 2; ++r) hosts.push_back(std::make_shared<Host>(r, std::make_shared<Heap>(HeapKind::memfd)));
    for (int r = 0; r < 2; ++r) {
      const std::string reason = hosts[r]->attach(1 - r, hosts[1 - r]->heap().card());
      if (!reason.empty()) fail(ErrorKind::internal, reason);
      mail.push_back(Mail::make(hosts[r]->heap(), 2));
    }
    Heap& heap = hosts[1]->heap();
    area = heap.offset_of(heap.allocate(1 << 20), 1 << 20);
    counts = heap.offset_of(heap.allocate(64), 64);
  }
  void renew() const {
    for (int r = 0; r < 2; ++r) Mail::prepare(hosts[r]->heap().at(mail[r]), 2, static_cast<uint64_t>(r) + 77);
    for (auto& count : *new (hosts[1]->heap().at(counts)) Counts::Line{}) count = kEnd;
  }
  std::vector<std::shared_ptr<Host>> hosts;
  std::vector<uint64_t> mail;
  uint64_t area = 0, counts = 0;
};

const HostMemory& host_memory() {
  static const HostMemory memory;
  memory.renew();
  return memory;
}

class TwoRanks {
 public:
  TwoRanks() : memory_(host_memory()), data_(make_local_hub(2, 0)), control_(make_local_hub(2, 0)) {
    const auto& [hosts, mail, area, counts] = memory_;
    peer_ = std::make_unique<Mail>(1, std::vector<std::byte*>{hosts[1]->at(0, mail[0]), hosts[1]->at(1, mail[1])});
    Options options;
    options.timeout = kPatience;
    options.letter_bytes = 64;
    Membership both{{0, 1},    make_local_transport(data_, 0), make_local_transport(control_, 0),
                    {2, 1, 2}, {hosts[0], {0, 1}, mail},       {0, 0}};
    engine_ = std::make_unique<Engine>(options, 0, std::move(both));
  }
  // The tensors outlive what uses them.
  ~TwoRanks() {
    caller_.reset(), engine_.reset();
    for (void* output : outputs_) memory_.hosts[0]->heap().free(output);
  }

  void submit(uint8_t which) {
    caller_ = std::make_unique<Engine::Caller>(*engine_);
    if (which % 4 == 0) return one(submission("small", 8)), one(submission("barrier", 0));
    if (which % 4 == 1) return one(submission("large", kLarge));
    if (which % 4 == 3) return one(submission("in place", kLarge), true);
    Submission plan = submission("plan", 1);
    plan.kind = OpKind::open_plan;
    plan.shape.clear();
    one(plan);
    turns(3);
  }
  void post(const Note& told, const std::string& payload) {
    Note note = told;
    note.bytes = std::min(note.bytes, Mail::kMostPayload);
    std::string padded = payload;
    padded.resize(note.bytes);
    peer_->post(note, padded.data());
  }
  void turns(int count) {
    for (; count > 0; --count) engine_->take_turn();
  }
  Whereabouts place() const {
    Whereabouts told;
    told.area = memory_.area, told.counts = memory_.counts;
    return told;
  }

 private:
  void one(Submission s, bool in_place = false) {
    const size_t bytes = 2 * sizeof(float) * kLarge;
    inputs_.emplace_back(2 * kLarge);
    s.input = inputs_.back().data();
    s.output = outputs_.emplace_back(memory_.hosts[0]->heap().allocate(bytes));
    if (in_place) s.input = s.output;
    handles_.push_back(engine_->submit(std::move(s)));
  }

  const HostMemory& memory_;
  std::deque<std::vector<float>> inputs_;
  std::vector<void*> outputs_;
  const std::shared_ptr<LocalHub> data_, control_;
  std::unique_ptr<Mail> peer_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Engine::Caller> caller_;
  std::vector<std::shared_ptr<Handle>> handles_;
};

Note about(const Submission& s, uint32_t bytes) {
  Note note;
  note.topic = Meetings::named;
  note.key = key_of(s.name);
  note.signature = s.signature();
  note.bytes = bytes;
  return note;
}

std::string letter(const Note& note, const std::string& payload) { return bytes_of(note) + payload; }

std::vector<std::string> letters() {
  const TwoRanks ranks;
  const std::string small(32, '\1'), place = bytes_of(ranks.place());
  Note leaves;
  leaves.topic = Meetings::leaving, leaves.ticket = 1;
  Note vote;
  vote.topic = Meetings::vote, vote.lane = 1, vote.bytes = 24, vote.signature = 24;
  const auto which = [](uint8_t number) { return bytes_of(number); };
  const std::string large = letter(about(submission("large", kLarge), sizeof(Whereabouts)), place);
  return {which(0) + letter(about(submission("small", 8), 32), small) + letter(about(submission("barrier", 0), 0), ""),
          which(1) + large, which(3) + letter(about(submission("in place", kLarge), sizeof(Whereabouts)), place),
          which(1) + large + letter(leaves, ""), which(2) + letter(vote, std::string(24, '\2'))};
}

FUZZ(engine_with_any_neighbour, letters) {
  TwoRanks ranks;
  Input in(input);
  ranks.submit(in.take<uint8_t>());
  for (int n = 0; n < kMost && !in.is_over(); ++n) {
    const Note note = in.take<Note>();
    ranks.post(note, in.take(std::min(note.bytes, Mail::kMostPayload)));
    ranks.turns(5);
  }
  ranks.turns(40);
}

}  // namespace
