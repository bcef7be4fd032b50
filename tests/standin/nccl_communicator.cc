#include "nccl_communicator.h"

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <mutex>

namespace standin {

const Cuda& of_cuda() {
  static const Cuda found = [] {
    void* library = dlopen(std::getenv("RINGDP_CUDA_LIBRARY"), RTLD_NOW | RTLD_NOLOAD);
    if (library == nullptr) misuse("libcuda is not loaded");
    Cuda c{};
    c.reach = reinterpret_cast<decltype(c.reach)>(dlsym(library, "standin_reach"));
    c.stream = reinterpret_cast<decltype(c.stream)>(dlsym(library, "standin_stream"));
    c.enqueue = reinterpret_cast<decltype(c.enqueue)>(dlsym(library, "standin_enqueue"));
    c.capture = reinterpret_cast<decltype(c.capture)>(dlsym(library, "standin_capture"));
    c.stopped = reinterpret_cast<decltype(c.stopped)>(dlsym(library, "standin_stopped"));
    c.uuid = reinterpret_cast<decltype(c.uuid)>(dlsym(library, "standin_uuid"));
    c.ordinal = reinterpret_cast<decltype(c.ordinal)>(dlsym(library, "standin_ordinal"));
    return c;
  }();
  return found;
}

Result fault(const std::string& call) {
  static std::mutex mutex;
  static std::map<std::string, int> counts;
  const char* text = std::getenv("RINGDP_STANDIN_NCCL_FAIL");
  if (text == nullptr || std::string(text).rfind(call + ":", 0) != 0) return kSuccess;
  std::lock_guard lock(mutex);
  const std::string rest = text + call.size() + 1;
  return ++counts[call] == std::atoi(rest.c_str()) ? std::atoi(rest.c_str() + rest.find(':') + 1) : kSuccess;
}

// --- which there are ----------------------------------------------------------------------------------------------------

namespace {

std::mutex all_mutex;
std::map<Communicator, Shared>& all() {
  static auto& communicators = *new std::map<Communicator, Shared>;
  return communicators;
}

}  // namespace

Comm::~Comm() {
  if (connecting.joinable()) connecting.join();
  if (file != nullptr) close_file(file);
}

// Numbers, not addresses: those might come again.
Communicator add(const Shared& c) {
  static uintptr_t last = 0xCC00;
  std::lock_guard lock(all_mutex);
  const auto handle = reinterpret_cast<Communicator>(++last);
  all()[handle] = c;
  return handle;
}

Shared find(Communicator c) {
  std::lock_guard lock(all_mutex);
  const auto found = all().find(c);
  if (found == all().end()) misuse("no communicator of NCCL, or one that was destroyed or aborted");
  return found->second;
}

void forget(Communicator c) {
  std::lock_guard lock(all_mutex);
  all().erase(c);
}

// --- how its ranks come together --------------------------------------------------------------------------------------------

bool barrier(Comm& c) {
  const int round = c.file->round.load();
  if (c.file->arrived.fetch_add(1) + 1 == c.ranks) {
    c.file->arrived = 0;
    c.file->round.fetch_add(1);
    return true;
  }
  return wait_for(c, [&] { return c.file->round.load() != round; });
}

void connect(Comm& c) {
  if (!wait_for(c, [&] { return (c.file = open_file(c.name)) != nullptr; })) return;
  if (c.file->taken[c.rank].fetch_add(1) > 0) misuse("two ranks of a communicator are rank " + std::to_string(c.rank));
  c.file->uuids[c.rank] = c.uuid;
  c.file->ranks[c.rank] = c.ranks;
  c.file->opened.fetch_add(1);
  const bool all_came = wait_for(c, [&] { return c.file->opened.load() == c.ranks; });
  if (!all_came) return;
  all_have_opened(c.name);
  for (int a = 0; a < c.ranks; ++a) {
    if (c.file->ranks[a] != c.ranks) misuse("the ranks of a communicator do not agree on how many they are");
    for (int b = 0; b < a; ++b)
      if (std::memcmp(&c.file->uuids[a], &c.file->uuids[b], sizeof c.uuid) == 0) {
        c.state = kInvalidUsage;
        return;
      }
  }
  c.state = kSuccess;
}

}  // namespace standin
