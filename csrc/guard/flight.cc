#include "guard/flight.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <new>

#include "base/error.h"

namespace ringdp {

namespace {

int64_t clock_of(clockid_t id) {
  timespec t;
  clock_gettime(id, &t);
  return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

template <size_t room>
void put(char (&to)[room], const char* text, size_t length) {
  const size_t bytes = std::min(length, room - 1);
  std::memcpy(to, text, bytes);
  to[bytes] = '\0';
}

template <size_t room>
void put(char (&to)[room], const std::string& text) {
  put(to, text.data(), text.size());
}

}  // namespace

ProcessState state_of_process(int pid) {
  char path[32], text[1024];
  std::snprintf(path, sizeof path, "/proc/%d/stat", pid);
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return {};
  const ssize_t length = read(fd, text, sizeof text - 1);
  close(fd);
  if (length <= 0) return {};
  text[length] = '\0';
  const char* at = std::strrchr(text, ')');  // the program's name may hold anything
  if (at == nullptr || at[1] == '\0' || at[2] == '\0') return {};
  ProcessState found;
  found.state = at[2];
  at += 2;
  for (int field = 3; field < 22 && at != nullptr; ++field) at = std::strchr(at + 1, ' ');
  if (at != nullptr) found.born = std::strtoull(at + 1, nullptr, 10);
  return found;
}

uint64_t pid_space() {
  struct stat status{};
  return stat("/proc/self/ns/pid", &status) == 0 ? status.st_ino : 0;
}

// --- this rank's -----------------------------------------------------------------------------------------------------

Flight::Flight(const std::string& path, const Owner& owner) : path_(path) {
  int& fd = fd_;
  if (!path.empty()) {
    fd = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) fail(ErrorKind::transport, "the flight recorder: ", path, ": ", std::strerror(errno));
    if (const int error = posix_fallocate(fd, 0, FlightView::kBytes);
        error != 0) {  // else who writes to it gets SIGBUS
      close(fd);
      ::unlink(path.c_str());
      fail(ErrorKind::transport, "the flight recorder: ", path, ": ", std::strerror(error));
    }
  }
  memory_ = mmap(nullptr, FlightView::kBytes, PROT_READ | PROT_WRITE, fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED,
                 fd, 0);
  if (memory_ == MAP_FAILED) {
    if (fd >= 0) close(fd), ::unlink(path.c_str());
    fail(ErrorKind::transport, "the flight recorder: mmap: ", std::strerror(errno));
  }
  if (fd >= 0) {
    madvise(memory_, FlightView::kBytes, MADV_DONTFORK);  // a forked child must not write for its parent
    lseek(fd, FlightView::kStacksAt, SEEK_SET);
  }
  auto& head = *new (memory_) FlightHead{};
  head.version = FlightHead::kVersion;
  head.head_bytes = FlightView::kHead;
  head.record_bytes = sizeof(FlightRecord);
  head.records = FlightHead::kRecords;
  if (getrandom(&head.token, sizeof head.token, 0) != ssize_t(sizeof head.token))
    head.token = clock_of(CLOCK_MONOTONIC);
  place(owner);
  head.pid = getpid();
  head.born = state_of_process(head.pid).born;
  head.pid_space = pid_space();
  head.wall_offset = clock_of(CLOCK_REALTIME) - clock_of(CLOCK_MONOTONIC);
  gethostname(head.host, sizeof head.host - 1);
  std::atomic_thread_fence(std::memory_order_release);
  head.magic = FlightHead::kMagic;
}

void Flight::place(const Owner& owner) {
  FlightHead& head = this->head();
  head.rank = owner.rank, head.size = owner.size;
  head.local_rank = owner.local_rank, head.local_size = owner.local_size;
  put(head.job, owner.job);
}

Flight::~Flight() {
  munmap(memory_, FlightView::kBytes);
  if (fd_ >= 0) close(fd_);
}

void Flight::unlink() {
  if (!path_.empty()) ::unlink(path_.c_str());
}

void Flight::make_room_for_stacks() {
  if (fd_ < 0 || lseek(fd_, 0, SEEK_CUR) < off_t(FlightView::kStacksAt + FlightView::kStacks / 2)) return;
  std::memset(static_cast<std::byte*>(memory_) + FlightView::kStacksAt, 0, FlightView::kStacks);
  lseek(fd_, FlightView::kStacksAt, SEEK_SET);
}

uint64_t Flight::begin(const Entry& entry, Stage stage) {
  FlightHead& head = this->head();
  const uint64_t number = head.submitted.fetch_add(1, std::memory_order_relaxed) + 1;
  FlightRecord& record = this->record(number);
  record.number.store(0, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_release);
  record.key = entry.key;
  record.sequence = entry.sequence;
  record.bytes = entry.bytes;
  record.submitted = nanoseconds(entry.made);
  record.changed.store(record.submitted, std::memory_order_relaxed);
  record.step = head.step.load(std::memory_order_relaxed);
  record.process_set = entry.process_set;
  record.lane = static_cast<int16_t>(entry.lane);
  record.kind = entry.kind;
  record.stage.store(static_cast<uint8_t>(stage), std::memory_order_relaxed);
  put(record.name, entry.name, entry.length);
  record.number.store(number, std::memory_order_release);
  return number;
}

// One that has been overwritten meanwhile is older than 4,096 others: nobody misses the news.
void Flight::change(uint64_t number, uint8_t stage) {
  if (number == 0) return;
  FlightRecord& record = this->record(number);
  if (record.number.load(std::memory_order_relaxed) != number) return;
  record.stage.store(stage, std::memory_order_relaxed);
  if (stage == static_cast<uint8_t>(Stage::agree))
    return;  // at once after its submission: a look at the clock is saved
  record.changed.store(nanoseconds(recently()), std::memory_order_relaxed);
}

void Flight::blame(const std::string& verdict) {
  if (head().fault.load() != 0) return;
  put(head().verdict, verdict);
  head().blamed_at.store(nanoseconds(Clock::now()));
}

bool blames_somebody(const FlightHead& head) {
  constexpr double kJustNow = 30;
  const int64_t at = head.blamed_at.load();
  return head.fault.load() != 0 || (at != 0 && seconds_between(at, clock_of(CLOCK_MONOTONIC)) < kJustNow);
}

void Flight::failed_by(const std::string& failure) {
  if (head().failed_at.load() != 0) return;
  put(head().failure, failure);
  head().failed_at.store(nanoseconds(Clock::now()));
}

// --- another rank's --------------------------------------------------------------------------------------------------

std::unique_ptr<FlightView> FlightView::open(const std::string& path, uint64_t token, std::string& reason) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0) {
    reason = path + ": " + std::strerror(errno);
    return nullptr;
  }
  struct stat status{};
  void* memory = MAP_FAILED;
  if (fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_uid == geteuid() &&
      status.st_size == static_cast<off_t>(kBytes))
    memory = mmap(nullptr, kBytes, PROT_READ, MAP_SHARED, fd, 0);
  close(fd);
  if (memory == MAP_FAILED) {
    reason = path + ": no flight recorder of this user";
    return nullptr;
  }
  const auto& head = *static_cast<const FlightHead*>(memory);
  if (head.magic != FlightHead::kMagic || head.version != FlightHead::kVersion || head.head_bytes != kHead ||
      head.record_bytes != sizeof(FlightRecord) || head.records != FlightHead::kRecords ||
      (token != 0 && head.token != token)) {
    munmap(memory, kBytes);
    reason = path + ": no flight recorder of this version, or of another rank";
    return nullptr;
  }
  madvise(memory, kBytes, MADV_DONTFORK);
  return std::unique_ptr<FlightView>(new FlightView(memory, path));
}

FlightView::~FlightView() { munmap(memory_, kBytes); }

const FlightRecord& FlightView::record(uint64_t number) const {
  return reinterpret_cast<const FlightRecord*>(static_cast<const std::byte*>(memory_) +
                                               kHead)[(number - 1) % FlightHead::kRecords];
}

bool FlightView::save(const char* path) const { return save_flight(memory_, path); }

bool save_flight(const void* memory, const char* path) {
  char unfinished[4096];
  const size_t length = strnlen(path, sizeof unfinished);
  if (length + 16 > sizeof unfinished) return false;
  std::memcpy(unfinished, path, length);
  char* end = unfinished + length;
  *end++ = '.';
  for (auto pid = static_cast<unsigned>(getpid()); pid != 0; pid /= 10) *end++ = static_cast<char>('0' + pid % 10);
  *end = '\0';
  const int fd = open(unfinished, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) return false;
  size_t written = 0;
  while (written < FlightView::kBytes) {
    const ssize_t bytes = write(fd, static_cast<const std::byte*>(memory) + written, FlightView::kBytes - written);
    if (bytes < 0 && errno == EINTR) continue;
    if (bytes <= 0) break;
    written += static_cast<size_t>(bytes);
  }
  close(fd);
  const bool saved = written == FlightView::kBytes && rename(unfinished, path) == 0;
  if (!saved) unlink(unfinished);
  return saved;
}

}  // namespace ringdp
