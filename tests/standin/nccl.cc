// A stand-in for libnccl: the bytes really go from rank to rank, in stream order; sums are formed in rank order.
//
// As in NCCL: calls of a non-blocking communicator are under way when they return; one collective at a time runs on a device,
// in the order in which their streams come to them; who waits for a rank that does not come waits until it aborts. Other than
// in NCCL, ranks that call with different arguments get an error.
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "device/nccl.h"
#include "kernels/kernels.h"
#include "nccl_shared.h"

using namespace ringdp;
using namespace ringdp::nccl;
using standin::Call;
using standin::SharedFile;

namespace {

constexpr Result kSystemError = 2, kInternalError = 3, kInvalidArgument = 4, kInvalidUsage = 5;

// --- the stand-in for libcuda -------------------------------------------------------------------------------------------

struct Cuda {
  ptrdiff_t* alias;
  void (*enqueue)(cuda::Stream, std::function<void()>*);
  cuda::Uuid (*uuid)();
  int (*ordinal)();
};

const Cuda& of_cuda() {
  static const Cuda found = [] {
    void* library = dlopen(std::getenv("RINGDP_CUDA_LIBRARY"), RTLD_NOW | RTLD_NOLOAD);
    Cuda c{};
    if (library == nullptr) std::fprintf(stderr, "stand-in: libcuda is not loaded\n"), std::abort();
    c.alias = static_cast<ptrdiff_t*>(dlsym(library, "standin_alias"));
    c.enqueue = reinterpret_cast<decltype(c.enqueue)>(dlsym(library, "standin_enqueue"));
    c.uuid = reinterpret_cast<decltype(c.uuid)>(dlsym(library, "standin_uuid"));
    c.ordinal = reinterpret_cast<decltype(c.ordinal)>(dlsym(library, "standin_ordinal"));
    return c;
  }();
  return found;
}

std::byte* reach(const void* device) { return static_cast<std::byte*>(const_cast<void*>(device)) + *of_cuda().alias; }

// --- faults on purpose: call:after:error, or async:after:error --------------------------------------------------------------

Result fault(const std::string& call) {
  static std::mutex mutex;
  static std::map<std::string, int> counts;
  const char* text = std::getenv("RINGDP_STANDIN_NCCL_FAIL");
  if (text == nullptr || std::string(text).rfind(call + ":", 0) != 0) return kSuccess;
  std::lock_guard lock(mutex);
  const std::string rest = text + call.size() + 1;
  return ++counts[call] == std::atoi(rest.c_str()) ? std::atoi(rest.c_str() + rest.find(':') + 1) : kSuccess;
}

// --- a communicator -----------------------------------------------------------------------------------------------------

struct Scaled {
  double factor;
};

struct Comm {
  std::string name;
  int ranks = 0, rank = 0, ordinal = 0;
  cuda::Uuid uuid{};
  std::atomic<Result> state{kSuccess};
  std::atomic<bool> aborted{false};
  SharedFile* file = nullptr;
  std::map<Operation, double> factors;
  std::thread connecting;

  ~Comm() {
    if (connecting.joinable()) connecting.join();
    if (file != nullptr) standin::close_file(file);
  }
};
using Shared = std::shared_ptr<Comm>;

std::atomic<int> destroyed{0}, aborted{0};

std::mutex all_mutex;
std::map<Communicator, Shared>& all() {
  static auto& communicators = *new std::map<Communicator, Shared>;
  return communicators;
}
Shared find(Communicator c) {
  std::lock_guard lock(all_mutex);
  const auto found = all().find(c);
  if (found == all().end()) std::fprintf(stderr, "stand-in: no communicator of NCCL\n"), std::abort();
  return found->second;
}

void pause() { std::this_thread::sleep_for(std::chrono::microseconds(20)); }

// False if the communicator was aborted before.
template <class Done>
bool wait_for(Comm& c, const Done& done) {
  while (!done()) {
    if (c.aborted) return false;
    pause();
  }
  return true;
}

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
  if (!wait_for(c, [&] { return (c.file = standin::open_file(c.name)) != nullptr; })) return;
  c.file->uuids[c.rank] = c.uuid;
  c.file->opened.fetch_add(1);
  const bool all_came = wait_for(c, [&] { return c.file->opened.load() == c.ranks; });
  if (c.rank == 0) standin::remove_file(c.name);
  if (!all_came) return;
  for (int a = 0; a < c.ranks; ++a)
    for (int b = 0; b < a; ++b)
      if (std::memcmp(&c.file->uuids[a], &c.file->uuids[b], sizeof c.uuid) == 0) {
        c.state = kInvalidUsage;
        return;
      }
  c.state = kSuccess;
}

// --- elements -------------------------------------------------------------------------------------------------------------

Dtype dtype_of(DataType type) {
  static const std::map<DataType, Dtype> known = {
      {kInt8, Dtype::int8},       {kUint8, Dtype::uint8},     {kInt32, Dtype::int32},     {kInt64, Dtype::int64},
      {kFloat16, Dtype::float16}, {kFloat32, Dtype::float32}, {kFloat64, Dtype::float64}, {kBfloat16, Dtype::bfloat16}};
  return known.at(type);
}

ReduceOp reduce_of(Operation operation) {
  const std::map<Operation, ReduceOp> known = {
      {kProduct, ReduceOp::product}, {kMax, ReduceOp::max}, {kMin, ReduceOp::min}};
  const auto found = known.find(operation);
  return found == known.end() ? ReduceOp::sum : found->second;
}

// --- collectives: each a walk through the slots, a piece at a time ---------------------------------------------------------

enum Kind { allreduce_kind, scatter_kind, gather_kind, broadcast_kind };

// True if all ranks call the same.
bool agrees(Comm& c, const Call& call) {
  c.file->calls[c.rank] = call;
  if (!barrier(c)) return false;
  bool same = true;
  for (int r = 0; r < c.ranks; ++r) same &= c.file->calls[r] == call;
  if (!same) c.state = kInternalError;
  return barrier(c) && same;
}

void put(Comm& c, const std::byte* from, uint64_t elements, const Call& call) {
  const Dtype dtype = dtype_of(call.type);
  std::memcpy(c.file->slots[c.rank], from, elements * size_of(dtype));
  if (call.factor != 1) kernels::scale(dtype, c.file->slots[c.rank], c.file->slots[c.rank], call.factor, elements);
}

void sum_slots(Comm& c, std::byte* to, uint64_t elements, const Call& call) {
  const Dtype dtype = dtype_of(call.type);
  std::memcpy(to, c.file->slots[0], elements * size_of(dtype));
  for (int r = 1; r < c.ranks; ++r)
    kernels::reduce(dtype, reduce_of(call.operation), to, to, c.file->slots[r], elements);
}

// In pieces that fit into a slot: take(offset in bytes, elements) between two barriers.
template <class Give, class Take>
bool walk(Comm& c, const Call& call, const Give& give, const Take& take) {
  const size_t item = size_of(dtype_of(call.type));
  const uint64_t most = standin::kSlot / item;
  for (uint64_t at = 0; at < call.count; at += most) {
    const uint64_t elements = std::min(most, call.count - at);
    give(at * item, elements);
    if (!barrier(c)) return false;
    take(at * item, elements);
    if (!barrier(c)) return false;
  }
  return true;
}

bool carry_out(Comm& c, const Call& call, const std::byte* from, std::byte* to) {
  const size_t item = size_of(dtype_of(call.type));
  const auto nothing = [](size_t, uint64_t) {};
  const auto give = [&](size_t at, uint64_t n) { put(c, from + at, n, call); };
  const auto sum = [&](size_t at, uint64_t n) { sum_slots(c, to + at, n, call); };
  if (!agrees(c, call)) return false;
  switch (call.kind) {
    case allreduce_kind:
      return walk(c, call, give, sum);
    case scatter_kind:
      for (int owner = 0; owner < c.ranks; ++owner) {
        const std::byte* part = from + owner * call.count * item;
        const auto give_part = [&](size_t at, uint64_t n) { put(c, part + at, n, call); };
        const bool mine = owner == c.rank;
        if (!(mine ? walk(c, call, give_part, sum) : walk(c, call, give_part, nothing))) return false;
      }
      return true;
    case gather_kind:
      return walk(c, call, give, [&](size_t at, uint64_t n) {
        for (int r = 0; r < c.ranks; ++r) std::memcpy(to + r * call.count * item + at, c.file->slots[r], n * item);
      });
    default: {
      const auto take = [&](size_t at, uint64_t n) { std::memcpy(to + at, c.file->slots[call.root], n * item); };
      return c.rank == call.root ? walk(c, call, give, take) : walk(c, call, nothing, take);
    }
  }
}

// Sends and receives of a group, which go on side by side.
struct Message {
  bool is_send;
  int peer;
  std::byte* data;
  uint64_t bytes;
};

bool advance(Comm& c, Message& m) {
  standin::Channel& channel = m.is_send ? c.file->channels[c.rank][m.peer] : c.file->channels[m.peer][c.rank];
  const uint64_t written = channel.written.load(), read = channel.read.load();
  const uint64_t n = std::min({m.is_send ? standin::kChannel - (written - read) : written - read, m.bytes,
                               standin::kChannel - (m.is_send ? written : read) % standin::kChannel});
  if (n == 0) return false;
  std::byte* place = channel.bytes + (m.is_send ? written : read) % standin::kChannel;
  m.is_send ? std::memcpy(place, m.data, n) : std::memcpy(m.data, place, n);
  (m.is_send ? channel.written : channel.read).fetch_add(n);
  m.data += n, m.bytes -= n;
  return true;
}

bool carry_out(Comm& c, std::vector<Message> messages) {
  return wait_for(c, [&] {
    bool moved = true, done = false;
    while (moved && !done) {
      moved = false, done = true;
      for (Message& m : messages) moved |= m.bytes > 0 && advance(c, m), done &= m.bytes == 0;
    }
    return done;
  });
}

// --- from a call to the stream ----------------------------------------------------------------------------------------------

using Work = std::function<bool(Comm&)>;  // false: the outputs are rubbish

// One at a time on a device.
std::mutex& of_device(int ordinal) {
  static std::mutex mutexes[64];
  return mutexes[ordinal % 64];
}

void run(Comm& c, const Work& work) {
  std::unique_lock device(of_device(c.ordinal), std::defer_lock);
  if (!wait_for(c, [&] { return device.try_lock(); })) return;
  if (const Result error = fault("async"); error != kSuccess) {
    if (error > 0) c.state = error;  // else it hangs, and says nothing
    wait_for(c, [] { return false; });
    return;
  }
  work(c);
}

// Under way when it returns; then the stream gets it.
Result issue(const Shared& c, cuda::Stream stream, std::vector<Work> works) {
  if (c->state == kInProgress)
    std::fprintf(stderr, "stand-in: a call of NCCL before the last one settled\n"), std::abort();
  if (c->state != kSuccess) return c->state;
  c->state = kInProgress;
  std::thread([c, stream, works = std::move(works)] {
    static std::atomic<unsigned> seed{1};
    std::this_thread::sleep_for(std::chrono::microseconds(std::minstd_rand(seed++)() % 60));
    for (const Work& work : works) of_cuda().enqueue(stream, new std::function<void()>([c, work] { run(*c, work); }));
    Result expected = kInProgress;
    c->state.compare_exchange_strong(expected, kSuccess);
  }).detach();
  return kInProgress;
}

struct Grouped {
  cuda::Stream stream = nullptr;
  std::vector<Work> works;
  std::vector<Message> messages;
};
thread_local int depth = 0;
thread_local std::map<Communicator, Grouped> grouped;

Result give(Communicator handle, cuda::Stream stream, Work work) {
  if (depth == 0) return issue(find(handle), stream, {std::move(work)});
  grouped[handle].stream = stream;
  grouped[handle].works.push_back(std::move(work));
  return kSuccess;
}

Result give_message(Communicator handle, cuda::Stream stream, Message message) {
  if (depth == 0) return kInvalidUsage;  // alone they could not be told from a pair that waits for each other
  grouped[handle].stream = stream;
  grouped[handle].messages.push_back(message);
  return kSuccess;
}

Result collective(const char* name, int kind, const void* from, void* to, uint64_t count, DataType type, Operation op,
                  int root, Communicator handle, cuda::Stream stream) {
  if (const Result error = fault(name); error != kSuccess) return error;
  const Shared c = find(handle);
  Call call{kind, type, op, root, count, 1};
  if (const auto scaled = c->factors.find(op); scaled != c->factors.end()) call.factor = scaled->second;
  if (op == kAverage) call.factor = 1.0 / c->ranks;
  if (c->factors.count(op) > 0) call.operation = kSum;
  return give(handle, stream, [call, from, to](Comm& comm) { return carry_out(comm, call, reach(from), reach(to)); });
}

}  // namespace

extern "C" {

Result ncclGetVersion(int* version) {
  *version = 22703;
  return kSuccess;
}

const char* ncclGetErrorString(Result error) {
  static thread_local std::string text;
  text = "stand-in error " + std::to_string(error);
  return text.c_str();
}

const char* ncclGetLastError(Communicator) { return ""; }

Result ncclGetUniqueId(UniqueId* id) {
  std::memset(id, 0, sizeof *id);
  const std::string name = standin::make_file();
  std::memcpy(id->bytes, name.c_str(), std::min(name.size(), sizeof id->bytes - 1));
  return name.empty() ? kSystemError : kSuccess;
}

Result ncclCommInitRankConfig(Communicator* communicator, int ranks, UniqueId id, int rank, Config* config) {
  if (const Result error = fault("ncclCommInitRankConfig"); error != kSuccess) return error;
  if (ranks > standin::kMostRanks || config->magic != 0xcafebeef || config->blocking != 0) return kInvalidArgument;
  auto made = std::make_shared<Comm>();
  made->name = id.bytes, made->ranks = ranks, made->rank = rank;
  made->uuid = of_cuda().uuid(), made->ordinal = of_cuda().ordinal();
  made->state = kInProgress;
  made->connecting = std::thread([c = made.get()] { connect(*c); });
  *communicator = reinterpret_cast<Communicator>(made.get());
  std::lock_guard lock(all_mutex);
  all()[*communicator] = made;
  return kInProgress;
}

Result ncclCommGetAsyncError(Communicator communicator, Result* error) {
  *error = find(communicator)->state;
  return kSuccess;
}

Result ncclCommFinalize(Communicator communicator) { return find(communicator)->state; }

// For tests.
int standin_nccl_destroyed() { return destroyed; }
int standin_nccl_aborted() { return aborted; }

Result ncclCommAbort(Communicator communicator) {
  ++aborted;
  const Shared c = find(communicator);
  c->aborted = std::getenv("RINGDP_STANDIN_NCCL_NO_ABORT") == nullptr;  // else as if the core had forgotten it
  std::lock_guard lock(all_mutex);
  all().erase(communicator);
  return kSuccess;
}

Result ncclCommDestroy(Communicator communicator) {
  ++destroyed;
  std::lock_guard lock(all_mutex);
  return all().erase(communicator) == 1 ? kSuccess : kInvalidArgument;
}

Result ncclAllReduce(const void* from, void* to, size_t count, DataType type, Operation op, Communicator c,
                     cuda::Stream stream) {
  return collective("ncclAllReduce", allreduce_kind, from, to, count, type, op, 0, c, stream);
}

Result ncclReduceScatter(const void* from, void* to, size_t each, DataType type, Operation op, Communicator c,
                         cuda::Stream stream) {
  return collective("ncclReduceScatter", scatter_kind, from, to, each, type, op, 0, c, stream);
}

Result ncclAllGather(const void* from, void* to, size_t each, DataType type, Communicator c, cuda::Stream stream) {
  return collective("ncclAllGather", gather_kind, from, to, each, type, kSum, 0, c, stream);
}

Result ncclBroadcast(const void* from, void* to, size_t count, DataType type, int root, Communicator c,
                     cuda::Stream stream) {
  return collective("ncclBroadcast", broadcast_kind, from, to, count, type, kSum, root, c, stream);
}

Result ncclSend(const void* from, size_t count, DataType type, int peer, Communicator c, cuda::Stream stream) {
  return give_message(c, stream, {true, peer, reach(from), count * size_of(dtype_of(type))});
}

Result ncclRecv(void* to, size_t count, DataType type, int peer, Communicator c, cuda::Stream stream) {
  return give_message(c, stream, {false, peer, reach(to), count * size_of(dtype_of(type))});
}

Result ncclGroupStart() {
  ++depth;
  return kSuccess;
}

Result ncclGroupEnd() {
  if (--depth > 0) return kSuccess;
  Result result = kSuccess;
  for (auto& [communicator, group] : std::exchange(grouped, {})) {
    if (!group.messages.empty()) group.works.push_back([sent = group.messages](Comm& c) { return carry_out(c, sent); });
    const Result one = issue(find(communicator), group.stream, std::move(group.works));
    if (one != kSuccess) result = one;
  }
  return result;
}

Result ncclRedOpCreatePreMulSum(Operation* operation, void* factor, DataType type, int where, Communicator handle) {
  if (where != kScalarOnHost) return kInvalidArgument;
  const Shared c = find(handle);
  const Dtype dtype = dtype_of(type);
  double value = 0;
  float narrow = 0;
  if (dtype == Dtype::float64) std::memcpy(&value, factor, sizeof value);
  if (dtype == Dtype::float32) std::memcpy(&narrow, factor, sizeof narrow), value = narrow;
  if (size_of(dtype) == 2) kernels::widen(Dtype::float32, &narrow, dtype, factor, 1), value = narrow;
  *operation = 1000 + static_cast<int>(c->factors.size());
  c->factors[*operation] = value;
  return kSuccess;
}

Result ncclRedOpDestroy(Operation operation, Communicator c) {
  return find(c)->factors.erase(operation) == 1 ? kSuccess : kInvalidArgument;
}
}
