// A stand-in for libnccl: the bytes really go from rank to rank, in stream order; sums are formed in rank order.
//
// As in NCCL: calls of a non-blocking communicator are under way when they return; one collective at a time runs on a device,
// in the order in which their streams come to them; who waits for a rank that does not come waits until it aborts. Other than
// in NCCL, what would hang, or give anything at all, ends the process with a word on why (misuse.h): ranks that call
// different things, communicators that are used when they are not to be, memory that is none.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <random>
#include <utility>
#include <vector>

#include "nccl_collectives.h"
#include "nccl_communicator.h"
#include "nccl_elements.h"
#include "nccl_messages.h"

using namespace standin;
using namespace ringdp::nccl;
using standin::misuse;

namespace {

std::atomic<int> destroyed{0}, aborted{0};

// --- from a call to the stream ----------------------------------------------------------------------------------------------

using Work = std::function<void(Comm&)>;

// One at a time on a device.
std::mutex& of_device(int ordinal) {
  static std::mutex mutexes[64];
  return mutexes[ordinal % 64];
}

void run_on_device(Comm& c, const std::vector<Work>& works) {
  std::unique_lock device(of_device(c.ordinal), std::defer_lock);
  if (!wait_for(c, [&] { return device.try_lock(); })) return;
  if (const Result error = fault("async"); error != kSuccess) {
    if (error > 0) c.state = error;  // else it hangs, and says nothing
    wait_for(c, [] { return false; });
    return;
  }
  for (const Work& work : works)
    if (!c.aborted) work(c);
}

void run(Comm& c, const std::vector<Work>& works) {
  ++c.running;
  if (!c.aborted && !of_cuda().stopped()) run_on_device(c, works);
  --c.running;
  --c.given;
}

// What may not be called now is misuse; else the error that the communicator has.
Result ready(const Comm& c, const char* call) {
  if (c.state == kInProgress) misuse(std::string(call) + " before the last call of NCCL settled");
  if (c.finalized) misuse(std::string(call) + " after ncclCommFinalize");
  return c.state;
}

// A graph refers to the communicator.
class Captured {
 public:
  explicit Captured(Shared c) : c_(std::move(c)) { ++c_->captured; }
  ~Captured() { --c_->captured; }

 private:
  const Shared c_;
};

std::function<void()> work_of(const Shared& c, const std::vector<Work>& works, bool is_captured) {
  if (!is_captured) {
    ++c->given;
    return [c, works] { run(*c, works); };
  }
  return [c, works, captured = std::make_shared<Captured>(c)] {
    ++c->given;
    run(*c, works);
  };
}

// The state that the communicator has then: of a capture that has become invalid, NCCL knows what CUDA answers.
Result enqueue(cuda::Stream stream, uint64_t capture, std::function<void()> work) {
  constexpr cuda::Result kCaptureUnmatched = 903;
  const cuda::Result result = of_cuda().enqueue(stream, capture, new std::function<void()>(std::move(work)));
  if (result == kCaptureUnmatched)
    misuse(std::string(capture == 0 ? "a capture began" : "the capture ended") + " while a call of NCCL was under way");
  return result == cuda::kSuccess ? kSuccess : kUnhandledCudaError;
}

// Under way when it returns; then the stream gets it.
Result issue(const Shared& c, cuda::Stream stream, const std::vector<Work>& works) {
  c->state = kInProgress;
  const uint64_t capture = of_cuda().capture(stream);
  std::thread([c, stream, capture, work = work_of(c, works, capture != 0)] {
    static std::atomic<unsigned> seed{1};
    std::this_thread::sleep_for(std::chrono::microseconds(std::minstd_rand(seed++)() % 60));
    const Result state = enqueue(stream, capture, work);
    Result expected = kInProgress;
    c->state.compare_exchange_strong(expected, state);
  }).detach();
  return kInProgress;
}

// --- groups -----------------------------------------------------------------------------------------------------------------

struct Grouped {
  Communicator communicator;
  cuda::Stream stream;
  std::vector<Work> works;
  std::vector<Message> messages;
};
thread_local int depth = 0;
thread_local Result group_error = kSuccess;
thread_local std::vector<Grouped> grouped;

// A group with a call that failed does nothing at all.
Result failed(Result error) {
  if (depth > 0) group_error = error;
  return error;
}

Grouped& of_group(Communicator handle, cuda::Stream stream) {
  for (Grouped& one : grouped) {
    if (one.communicator != handle) continue;
    if (one.stream != stream) misuse("the calls of a group are in two streams");
    return one;
  }
  grouped.push_back({handle, stream, {}, {}});
  return grouped.back();
}

Result issue_group(Grouped& group) {
  const Shared c = find(group.communicator);
  if (const Result error = ready(*c, "ncclGroupEnd"); error != kSuccess) return error;
  if (!group.messages.empty()) {
    check(*c, group.messages);
    group.works.push_back([sent = group.messages](Comm& comm) { carry_out(comm, sent); });
  }
  return issue(c, group.stream, group.works);
}

// --- what the functions have in common --------------------------------------------------------------------------------------

// False: there is no such operation, or it is one for another type.
bool resolve(const Comm& c, Operation operation, Call& call) {
  call.operation = operation;
  if (operation == kAverage && is_float(dtype_of(call.type)))
    call.factor = bytes_of(dtype_of(call.type), 1.0 / c.ranks);
  if (operation >= kSum && operation <= kAverage) return true;
  const auto made = c.factors.find(operation);
  if (made == c.factors.end() || made->second.type != call.type) return false;
  call.operation = kPremultiplied, call.factor = made->second.bytes;
  return true;
}

Result collective(Kind kind, Buffers buffers, uint64_t count, DataType type, Operation op, int root,
                  Communicator handle, cuda::Stream stream) {
  const Shared c = find(handle);
  if (const Result error = fault(name_of(kind)); error != kSuccess) return failed(error);
  if (const Result error = ready(*c, name_of(kind)); error != kSuccess) return failed(error);
  Call call{kind, type, 0, root, count, 0};
  if (root < 0 || root >= c->ranks || !is_known(type) || !resolve(*c, op, call)) return failed(kInvalidArgument);
  check(*c, call, buffers);
  const cuda::Stream in = of_cuda().stream(stream, c->ordinal);
  Work work = [call, buffers](Comm& comm) { carry_out(comm, call, buffers); };
  if (depth == 0) return issue(c, in, {std::move(work)});
  of_group(handle, in).works.push_back(std::move(work));
  return kSuccess;
}

Result message(bool is_send, const void* data, uint64_t count, DataType type, int peer, Communicator handle,
               cuda::Stream stream) {
  const char* name = is_send ? "ncclSend" : "ncclRecv";
  const Shared c = find(handle);
  if (const Result error = fault(name); error != kSuccess) return failed(error);
  if (const Result error = ready(*c, name); error != kSuccess) return failed(error);
  if (peer < 0 || peer >= c->ranks || !is_known(type)) return failed(kInvalidArgument);
  if (depth == 0) return kInvalidUsage;  // alone it could not be told from one of a pair that waits for each other
  const uint64_t bytes = count * size_of(dtype_of(type));
  of_group(handle, of_cuda().stream(stream, c->ordinal))
      .messages.push_back({is_send, peer, reinterpret_cast<cuda::Address>(data), bytes, type});
  return kSuccess;
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

// --- communicators ------------------------------------------------------------------------------------------------------------

Result ncclGetUniqueId(UniqueId* id) {
  std::memset(id, 0, sizeof *id);
  const std::string name = make_file();
  std::memcpy(id->bytes, name.c_str(), std::min(name.size(), sizeof id->bytes - 1));
  return name.empty() ? kSystemError : kSuccess;
}

Result ncclCommInitRankConfig(Communicator* communicator, int ranks, UniqueId id, int rank, Config* config) {
  if (const Result error = fault("ncclCommInitRankConfig"); error != kSuccess) return error;
  if (ranks > kMostRanks || rank < 0 || rank >= ranks) return kInvalidArgument;
  if (config->magic != 0xcafebeef || config->blocking != 0) return kInvalidArgument;
  auto made = std::make_shared<Comm>();
  made->name = id.bytes, made->ranks = ranks, made->rank = rank;
  made->uuid = of_cuda().uuid(), made->ordinal = of_cuda().ordinal();
  made->state = kInProgress;
  made->connecting = std::thread([c = made.get()] { connect(*c); });
  *communicator = add(made);
  return kInProgress;
}

Result ncclCommGetAsyncError(Communicator communicator, Result* error) {
  *error = find(communicator)->state;
  return kSuccess;
}

// Under way until all that was given is done.
Result ncclCommFinalize(Communicator communicator) {
  const Shared c = find(communicator);
  if (const Result error = ready(*c, "ncclCommFinalize"); error != kSuccess) return error;
  c->state = kInProgress;
  c->finalized = true;
  std::thread([c] {
    Result expected = kInProgress;
    if (wait_for(*c, [&] { return c->given == 0 && c->captured == 0; }))
      c->state.compare_exchange_strong(expected, kSuccess);
  }).detach();
  return kInProgress;
}

// What is on the GPU ends before it returns.
Result ncclCommAbort(Communicator communicator) {
  ++aborted;
  const Shared c = find(communicator);
  if (c->captured > 0 && !of_cuda().stopped()) misuse("ncclCommAbort would wait for the graphs that refer to it");
  forget(communicator);
  if (std::getenv("RINGDP_STANDIN_NCCL_NO_ABORT") != nullptr) return kSuccess;  // as if the core had forgotten it
  c->aborted = true;
  while (c->running > 0) std::this_thread::sleep_for(std::chrono::microseconds(20));
  return kSuccess;
}

Result ncclCommDestroy(Communicator communicator) {
  ++destroyed;
  const Shared c = find(communicator);
  if (c->captured > 0) misuse("ncclCommDestroy would wait for the graphs that refer to it");
  if (c->state == kInProgress || c->given > 0) misuse("ncclCommDestroy while something is under way");
  forget(communicator);
  return kSuccess;
}

// For tests.
int standin_nccl_destroyed() { return destroyed; }
int standin_nccl_aborted() { return aborted; }

// --- operations ---------------------------------------------------------------------------------------------------------------

Result ncclAllReduce(const void* from, void* to, size_t count, DataType type, Operation op, Communicator c,
                     cuda::Stream stream) {
  return collective(allreduce_kind, {from, to}, count, type, op, 0, c, stream);
}

Result ncclReduce(const void* from, void* to, size_t count, DataType type, Operation op, int root, Communicator c,
                  cuda::Stream stream) {
  return collective(reduce_kind, {from, to}, count, type, op, root, c, stream);
}

Result ncclReduceScatter(const void* from, void* to, size_t each, DataType type, Operation op, Communicator c,
                         cuda::Stream stream) {
  return collective(scatter_kind, {from, to}, each, type, op, 0, c, stream);
}

Result ncclAllGather(const void* from, void* to, size_t each, DataType type, Communicator c, cuda::Stream stream) {
  return collective(gather_kind, {from, to}, each, type, kSum, 0, c, stream);
}

Result ncclBroadcast(const void* from, void* to, size_t count, DataType type, int root, Communicator c,
                     cuda::Stream stream) {
  return collective(broadcast_kind, {from, to}, count, type, kSum, root, c, stream);
}

Result ncclSend(const void* from, size_t count, DataType type, int peer, Communicator c, cuda::Stream stream) {
  return message(true, from, count, type, peer, c, stream);
}

Result ncclRecv(void* to, size_t count, DataType type, int peer, Communicator c, cuda::Stream stream) {
  return message(false, to, count, type, peer, c, stream);
}

Result ncclGroupStart() {
  ++depth;
  return kSuccess;
}

Result ncclGroupEnd() {
  if (depth == 0) return kInvalidUsage;
  if (--depth > 0) return kSuccess;
  std::vector<Grouped> all = std::exchange(grouped, {});
  Result result = std::exchange(group_error, kSuccess);
  if (result != kSuccess) return result;
  for (Grouped& group : all) {
    const Result one = issue_group(group);
    if (result == kSuccess || result == kInProgress) result = one;
  }
  return result;
}

// --- sums of what is multiplied before ------------------------------------------------------------------------------------------

Result ncclRedOpCreatePreMulSum(Operation* operation, void* factor, DataType type, int where, Communicator handle) {
  static std::atomic<Operation> last{1000};  // no number comes twice, in no communicator
  const Shared c = find(handle);
  if (const Result error = ready(*c, "ncclRedOpCreatePreMulSum"); error != kSuccess) return error;
  if (where != kScalarOnHost || !is_known(type)) return kInvalidArgument;
  Factor made{type, 0};
  std::memcpy(&made.bytes, factor, size_of(dtype_of(type)));
  *operation = ++last;
  c->factors[*operation] = made;
  return kSuccess;
}

Result ncclRedOpDestroy(Operation operation, Communicator c) {
  return find(c)->factors.erase(operation) == 1 ? kSuccess : kInvalidArgument;
}
}
