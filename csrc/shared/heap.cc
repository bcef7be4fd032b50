#include "shared/heap.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <new>

#include "base/error.h"
#include "guard/flight.h"

namespace ringdp {

namespace {

constexpr uint64_t kLine = 64, kPage = 64 << 10;  // no system has larger ones by default
constexpr uint64_t kGrowth = 1 << 20;             // memory is reserved in steps of this
constexpr uint64_t kIdleMost = 128 << 20;         // more memory than this in free blocks goes back to the system
constexpr uint64_t kHollowLeast = 1 << 20;        // blocks smaller than this keep theirs

constexpr uint64_t kMostCapacity = uint64_t{1} << 46;  // of an address space
constexpr const char* kFiles = "/dev/shm/ringdp-";

constexpr uint64_t round_up(uint64_t n, uint64_t unit) { return (n + unit - 1) / unit * unit; }

std::string why(const char* call) { return std::string(call) + ": " + std::strerror(errno); }

// No child process maps it: a forked one must not write into the parent's exchange. No core dump holds it.
std::byte* map_shared(int fd, uint64_t capacity) {
  void* base = mmap(nullptr, capacity, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  if (base == MAP_FAILED) return nullptr;
  madvise(base, capacity, MADV_DONTFORK);
  madvise(base, capacity, MADV_DONTDUMP);
  return static_cast<std::byte*>(base);
}

uint64_t physical_memory() {
  return static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

// Where another process finds the heap; "" for what no card of ours says.
std::string path_of(const HeapCard& card) {
  if (card.kind == HeapKind::memfd && card.pid > 0 && card.fd >= 0)
    return "/proc/" + std::to_string(card.pid) + "/fd/" + std::to_string(card.fd);
  const std::string name(card.name, strnlen(card.name, sizeof card.name));
  const bool is_ours = name.size() < sizeof card.name && name.compare(0, std::strlen(kFiles), kFiles) == 0 &&
                       name.find('/', std::strlen(kFiles)) == std::string::npos;
  return card.kind == HeapKind::file && is_ours ? name : "";
}

int open_file(HeapCard& card) {
  if (card.kind == HeapKind::memfd) {
    const int fd = memfd_create("ringdp", MFD_CLOEXEC);
    if (fd >= 0) fchmod(fd, 0600);
    return fd;
  }
  std::snprintf(card.name, sizeof card.name, "%s%d-%08x", kFiles, card.pid, unsigned(card.token[0]));
  return open(card.name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
}

}  // namespace

Heap::Heap(HeapKind kind) {
  card_.kind = kind;
  card_.pid = getpid();
  card_.pid_space = pid_space();
  card_.capacity = round_up(physical_memory(), kGrowth);
  if (getrandom(card_.token, sizeof card_.token, 0) != ssize_t(sizeof card_.token))
    fail(ErrorKind::transport, "shared memory: ", why("getrandom"));
  fd_ = card_.fd = open_file(card_);
  if (fd_ < 0)
    fail(ErrorKind::transport, "shared memory: ", why(kind == HeapKind::memfd ? "memfd_create" : "/dev/shm"));
  base_ = map_shared(fd_, card_.capacity);
  if (base_ == nullptr || !grow(kPage)) {
    const std::string reason = why(base_ == nullptr ? "mmap" : "fallocate");
    if (base_ != nullptr) munmap(base_, card_.capacity);
    unlink();
    close(fd_);
    fail(ErrorKind::transport, "shared memory: ", reason);
  }
  std::memcpy(head().token, card_.token, sizeof card_.token);
  auto first = free_.extract(0);  // the head stays
  free_[kPage] = {first.mapped().bytes - kPage, false};
  idle_ -= kPage;
}

Heap::~Heap() {
  unlink();
  munmap(base_, card_.capacity);
  close(fd_);
}

void Heap::unlink() {
  if (card_.name[0] != '\0') ::unlink(card_.name);
  card_.name[0] = '\0';
}

// Memory is taken from the system here, not when it is first touched: a touch cannot fail, it can only kill.
bool Heap::reserve(uint64_t offset, uint64_t bytes) {
  int result;
  do {
    result = fallocate(fd_, 0, static_cast<off_t>(offset), static_cast<off_t>(bytes));
  } while (result != 0 && errno == EINTR);
  return result == 0;
}

bool Heap::grow(uint64_t bytes) {
  const uint64_t more = round_up(bytes, kGrowth);
  if (more > card_.capacity - end_ || !reserve(end_, more)) return false;
  give_back(end_, more, false);
  end_ += more;
  head().end.store(end_, std::memory_order_release);
  return true;
}

void* Heap::allocate(size_t wanted) {
  const uint64_t unit = wanted < kPage ? kLine : kPage, bytes = round_up(std::max<uint64_t>(wanted, 1), unit);
  std::lock_guard lock(mutex_);
  for (int attempt = 0; attempt < 2; ++attempt) {
    for (auto it = free_.begin(); it != free_.end(); ++it) {
      const auto [begin, block] = *it;
      const uint64_t at = round_up(begin, unit), end = begin + block.bytes;
      if (at + bytes > end) continue;
      if (block.hollow && !reserve(at, bytes)) return nullptr;
      free_.erase(it);
      if (!block.hollow) idle_ -= block.bytes;
      if (at > begin) give_back(begin, at - begin, block.hollow);
      if (end > at + bytes) give_back(at + bytes, end - at - bytes, block.hollow);
      taken_[at] = bytes;
      if (bytes >= kHollowLeast) madvise(base_ + at, bytes, MADV_POPULATE_WRITE);  // a kernel before 5.14 refuses
      return base_ + at;
    }
    if (!grow(bytes + kPage)) return nullptr;
  }
  return nullptr;
}

void Heap::free(void* block) {
  const uint64_t offset = static_cast<uint64_t>(static_cast<std::byte*>(block) - base_);
  std::lock_guard lock(mutex_);
  const auto it = taken_.find(offset);
  if (it == taken_.end()) fail(ErrorKind::internal, "a block of shared memory was given back twice");
  const uint64_t bytes = it->second;
  taken_.erase(it);
  bool hollow = false;
  if (bytes >= kHollowLeast && idle_ + bytes > kIdleMost)
    hollow = fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                       static_cast<off_t>(bytes)) == 0;
  give_back(offset, bytes, hollow);
}

// Into the list of free blocks, joined with its neighbours where they are alike.
void Heap::give_back(uint64_t offset, uint64_t bytes, bool hollow) {
  if (!hollow) idle_ += bytes;
  auto next = free_.lower_bound(offset);
  if (next != free_.end() && next->first == offset + bytes && next->second.hollow == hollow) {
    bytes += next->second.bytes;
    next = free_.erase(next);
  }
  if (next != free_.begin()) {
    auto& [begin, block] = *std::prev(next);
    if (begin + block.bytes == offset && block.hollow == hollow) {
      block.bytes += bytes;
      return;
    }
  }
  free_[offset] = {bytes, hollow};
}

uint64_t Heap::offset_of(const void* data, size_t bytes) const {
  const auto* p = static_cast<const std::byte*>(data);
  if (p < base_ || p + bytes > base_ + card_.capacity) return kNowhere;
  return static_cast<uint64_t>(p - base_);
}

std::unique_ptr<PeerHeap> PeerHeap::map(const HeapCard& card, std::string& reason) {
  if (card.version != HeapCard::kVersion) {
    reason = "another version of ringdp";
    return nullptr;
  }
  const std::string path = path_of(card);
  if (path.empty() || card.capacity < kPage || card.capacity > kMostCapacity) {
    reason = "its card makes no sense";
    return nullptr;
  }
  const int follow = card.kind == HeapKind::file ? O_NOFOLLOW : 0;  // the other is a link of the kernel's
  const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | follow);
  if (fd < 0) {
    reason = why(path.c_str());
    return nullptr;
  }
  // Whatever was opened may be another process's file of any length: look before touching.
  struct stat status{};
  std::byte* base = fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_size >= off_t(kPage)
                        ? map_shared(fd, card.capacity)
                        : nullptr;
  close(fd);
  if (base == nullptr) {
    reason = "what is at its place cannot be mapped";
    return nullptr;
  }
  std::unique_ptr<PeerHeap> peer(new PeerHeap(base, card.capacity));
  if (std::memcmp(peer->head().token, card.token, sizeof card.token) != 0) {
    reason = "its token cannot be read there";
    return nullptr;
  }
  return peer;
}

PeerHeap::~PeerHeap() { munmap(base_, capacity_); }

}  // namespace ringdp
