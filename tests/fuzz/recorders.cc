// Flight recorders of other ranks, whose processes may have written anything: what is looked up in them while somebody waits.
//
// An input is the head of a file, then some records, then stacks; the file has zeros between them.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "fuzz.h"
#include "guard/survey.h"

using namespace ringdp;
using namespace ringdp::fuzz;

namespace {

constexpr size_t kRecords = 6, kRecordBytes = kRecords * sizeof(FlightRecord), kStackBytes = 2000;

// In a file of its own, which goes with this process.
class Recorder {
 public:
  Recorder() : fd_(mkstemp(path_)) {
    if (fd_ < 0 || ftruncate(fd_, FlightView::kBytes) != 0) fail(ErrorKind::internal, path_, " cannot be written to");
  }
  ~Recorder() { unlink(path_); }

  std::unique_ptr<FlightView> holding(const std::string& input, std::string& reason) {
    Input bytes(input);
    put(bytes.take(sizeof(FlightHead)), sizeof(FlightHead), 0);
    put(bytes.take(kRecordBytes), kRecordBytes, FlightView::kHead);
    put(bytes.take(kStackBytes), kStackBytes, FlightView::kStacksAt);
    return FlightView::open(path_, 0, reason);
  }

 private:
  void put(std::string bytes, size_t room, size_t where) {
    bytes.resize(room);
    if (pwrite(fd_, bytes.data(), room, static_cast<off_t>(where)) != static_cast<ssize_t>(room))
      fail(ErrorKind::internal, path_, " cannot be written to");
  }

  char path_[64] = "/tmp/ringdp-fuzz-XXXXXX";
  int fd_;
};

std::string text(const Flight& flight) {
  std::string all(reinterpret_cast<const char*>(&flight.head()), sizeof(FlightHead));
  all.append(reinterpret_cast<const char*>(flight.records()), kRecordBytes);
  return all + "Thread 0x1 (most recent call first):\n  File \"train.py\", line 3\n";
}

std::vector<std::string> recorders() {
  Flight flight("", {3, 8, 1, 4, "a job"});
  std::vector<std::string> all{text(flight)};
  const auto begin = [&](uint8_t kind, int lane, uint64_t key, const std::string& name, Stage stage) {
    flight.enter(flight.begin({kind, 0, lane, key, 1, 64, name.data(), name.size(), Clock::now()}, Stage::submit),
                 stage);
  };
  begin(0, 0, 11, "loss", Stage::done);
  begin(0, 1, 12, "bucket 0 of plan 1", Stage::reduce);
  begin(FlightRecord::kVote, 1, 0, "plan 1", Stage::agree);
  begin(0, 0, 11, "loss", Stage::agree);
  flight.head().calls[0].since = nanoseconds(Clock::now());
  std::strcpy(flight.head().calls[0].what, "MPI_Comm_dup");
  all.push_back(text(flight));
  flight.failed_by("ValueError: the data is broken");
  flight.blame("rank 2 is dead");
  flight.head().signal = 11;
  all.push_back(text(flight));
  return all;
}

FUZZ(recorders_of_others, recorders) {
  static Recorder recorder;
  std::string reason;
  const auto view = recorder.holding(input, reason);
  if (view == nullptr) {
    if (reason.empty()) throw std::logic_error("no reason is given");
    fail(ErrorKind::transport, reason);
  }
  const FlightHead& head = view->head();
  for (const auto& [lane, kind] : {std::pair(0, 0), std::pair(1, 0), std::pair(1, int{FlightRecord::kVote})}) {
    Question question;
    question.key = 11, question.sequence = 1, question.lane = lane, question.kind = static_cast<uint8_t>(kind);
    const Seen seen = look_at(head, &view->record(1), question);
    if (in_words(seen).size() > 1000) throw std::logic_error("more than a line");
  }
  if (stack_since(head, 10).size() > FlightView::kStacks) throw std::logic_error("more than there is");
  if (text_of(head.verdict).size() > sizeof head.verdict || text_of(head.failure).size() > sizeof head.failure)
    throw std::logic_error("more than there is room for");
  blames_somebody(head);
}

}  // namespace
