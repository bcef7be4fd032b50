// A stand-in for libcuda: every function that ringdp looks up (csrc/device/cuda.h), without a GPU.
#include <unistd.h>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "captures.h"
#include "graphs.h"
#include "kernel.h"
#include "memory.h"
#include "standin.h"
#include "streams.h"

using namespace ringdp::cuda;
using standin::Memory;
using standin::misuse;

using standin::capture_mutex, standin::give, standin::is_stopped, standin::refusal;
using standin::kCapturedEvent, standin::kCaptureImplicit, standin::kCaptureInvalidated, standin::kCaptureIsolation,
    standin::kCaptureMerge, standin::kCaptureUnjoined, standin::kCaptureUnmatched, standin::kCaptureUnsupported,
    standin::kCaptureWrongThread, standin::kIllegalState;

namespace {

constexpr Result kInvalidContext = 201, kInvalidHandle = 400, kNoImage = 209, kLaunchFailure = 719;

const char* setting(const char* name) {
  const char* text = std::getenv(name);
  return text != nullptr && *text != '\0' ? text : nullptr;
}

int devices() {
  const char* text = setting("RINGDP_STANDIN_DEVICES");
  return text ? std::atoi(text) : 1;
}

// --- calls: counted, and failed on purpose ----------------------------------------------------------------------------

struct Faults {
  struct Fault {
    int after;
    Result error;
  };
  std::mutex mutex;
  std::map<std::string, long> calls;
  std::map<std::string, Fault> faults;
  Result sticky = kSuccess;

  Faults() {  // function:after:error
    const char* text = setting("RINGDP_STANDIN_FAIL");
    if (text == nullptr) return;
    const std::string all = text;
    const size_t first = all.find(':'), second = all.find(':', first + 1);
    if (second == std::string::npos) misuse("RINGDP_STANDIN_FAIL is not function:after:error");
    faults[all.substr(0, first)] = {std::atoi(all.c_str() + first + 1), std::atoi(all.c_str() + second + 1)};
  }
};

Faults& faults() {
  static auto& all = *new Faults;
  return all;
}

bool is_sticky(Result error) { return error == 700 || error == 702 || error == 710 || error == 719; }

Result called(const char* function) {
  if (standin::UserObject::being_destroyed()) misuse(std::string(function) + " where a user object is destroyed");
  Faults& f = faults();
  std::lock_guard lock(f.mutex);
  ++f.calls[function];
  if (f.sticky != kSuccess) return f.sticky;
  const auto fault = f.faults.find(function);
  if (fault == f.faults.end() || --fault->second.after > 0) return kSuccess;
  const Result error = fault->second.error;
  if (fault->second.after == 0) f.faults.erase(fault);  // once; of a negative number, always
  if (is_sticky(error)) f.sticky = error;
  return error;
}

// --- contexts, and what is in them ---------------------------------------------------------------------------------------

thread_local std::vector<int> current;  // devices whose primary contexts are

Context context_of(int device) { return reinterpret_cast<Context>(static_cast<uintptr_t>(0xC000 + device)); }
int device_of(Context context) { return static_cast<int>(reinterpret_cast<uintptr_t>(context)) - 0xC000; }

template <class T>
class Handles {
 public:
  template <class... Given>
  T* add(Given... given) {
    auto made = std::make_unique<T>(given...);
    std::lock_guard lock(mutex_);
    return all_.insert(std::move(made)).first->get();
  }
  template <class Is>
  T* find_if(const Is& is_it) {
    std::lock_guard lock(mutex_);
    for (const auto& one : all_)
      if (is_it(*one)) return one.get();
    return nullptr;
  }
  T* find(const void* handle) {
    return find_if([handle](const T& one) { return &one == handle; });
  }
  std::unique_ptr<T> remove(const void* handle) {
    std::lock_guard lock(mutex_);
    for (auto it = all_.begin(); it != all_.end(); ++it)
      if (it->get() == handle) return std::move(all_.extract(it).value());
    return nullptr;
  }
  template <class Act>
  void for_each(const Act& act) {
    std::vector<T*> now;
    {
      std::lock_guard lock(mutex_);
      for (const auto& one : all_) now.push_back(one.get());
    }
    for (T* one : now) act(*one);
  }
  long count() {
    std::lock_guard lock(mutex_);
    return static_cast<long>(all_.size());
  }

 private:
  std::mutex mutex_;
  std::set<std::unique_ptr<T>> all_;
};

// Never destroyed: threads of a process that ends may still be at work.
Handles<standin::Stream>& streams() {
  static auto& all = *new Handles<standin::Stream>;
  return all;
}
Handles<standin::Event>& events() {
  static auto& all = *new Handles<standin::Event>;
  return all;
}

using standin::Order;

// Of captures that have ended: a graph's handle is its address, before that, too.
Handles<std::shared_ptr<standin::Graph>>& graphs() {
  static auto& all = *new Handles<std::shared_ptr<standin::Graph>>;
  return all;
}
Handles<standin::Executable>& executables() {
  static auto& all = *new Handles<standin::Executable>;
  return all;
}
using GraphExec = struct ExecutableOfDriver*;

std::shared_ptr<standin::Graph>* at(Graph handle) {
  return graphs().find_if([handle](const auto& graph) { return reinterpret_cast<Graph>(graph.get()) == handle; });
}

struct OwnedObject {  // by who made it
  std::shared_ptr<standin::UserObject> object;
  unsigned references;
};
Handles<OwnedObject>& user_objects() {
  static auto& all = *new Handles<OwnedObject>;
  return all;
}

std::shared_ptr<standin::Capture> capture_of(const standin::Stream& stream) {
  std::lock_guard lock(capture_mutex());
  return stream.capture;
}

// The legacy default stream of a device, or that of this thread.
standin::Stream* default_stream(int device, bool of_thread) {
  static std::mutex mutex;
  static auto& all = *new std::map<std::pair<int, std::thread::id>, standin::Stream*>;
  std::lock_guard lock(mutex);
  standin::Stream*& stream = all[{device, of_thread ? std::this_thread::get_id() : std::thread::id()}];
  if (stream == nullptr) stream = streams().add(device, of_thread ? Order::blocking : Order::legacy);
  return stream;
}

standin::Stream* at(Stream handle, int device) {
  const auto number = reinterpret_cast<uintptr_t>(handle);
  if (number <= kPerThreadStream) return default_stream(device, number == kPerThreadStream);
  return streams().find(handle);
}
standin::Stream* at(Stream handle) { return at(handle, current.back()); }
standin::Event* at(Event handle) { return events().find(handle); }

std::mutex pinned_mutex;
std::map<const void*, size_t>& pinned() {
  static auto& all = *new std::map<const void*, size_t>;
  return all;
}

void check_pinned(const void* memory, size_t bytes, const char* who) {  // where some part of it is
  std::lock_guard lock(pinned_mutex);
  auto block = pinned().upper_bound(memory);
  if (block == pinned().begin()) return;
  --block;
  const auto* begin = static_cast<const char*>(block->first);
  const auto* from = static_cast<const char*>(memory);
  if (from < begin + block->second && from + bytes > begin + block->second)
    misuse(std::string(who) + ": it runs out of pinned memory");
}

// Looked for when a call is made, and when it is carried out: what it uses must not have been freed meanwhile.
std::byte* device_memory(Address at, size_t bytes, const char* who) { return Memory::instance().reach(at, bytes, who); }

std::mutex held_mutex;
std::vector<std::promise<void>>& held() {
  static auto& all = *new std::vector<std::promise<void>>;
  return all;
}

// Mistakes that the core might make, to see that a test notices. A copy to the device from the wrong place:
size_t wrong_offset(size_t bytes) {
  static const char* text = setting("RINGDP_STANDIN_WRONG_OFFSET");
  static std::atomic<long> count{0};
  return text != nullptr && bytes > 4 && ++count == std::atol(text) ? 4 : 0;
}

// A kernel that does nothing.
bool leaves_out(const char* kernel) {
  static const char* text = setting("RINGDP_STANDIN_NO_KERNEL");
  return text != nullptr && std::strcmp(text, kernel) == 0;
}

// A kernel, by its name, that spoils the first element that it writes, of four bytes; its address comes first in what it is
// given.
void spoil(const StandinKernel& kernel, const std::byte* given) {
  static const char* text = setting("RINGDP_STANDIN_WRONG_KERNEL");
  if (text == nullptr || std::strcmp(text, kernel.name) != 0) return;
  Address to = 0;
  std::memcpy(&to, given, sizeof to);
  Memory::instance().reach(to, 4, kernel.name)[2] ^= std::byte{0x40};
}

// A GPU, by its number, whose driver takes no module.
bool refuses_modules(int device) {
  static const char* text = setting("RINGDP_STANDIN_NO_MODULES");
  return text != nullptr && device == std::atoi(text);
}

// A wait that is left out; "all": each.
bool drops_wait() {
  const char* text = setting("RINGDP_STANDIN_DROP_WAIT");
  static std::atomic<long> count{0};
  if (text == nullptr) return false;
  return std::strcmp(text, "all") == 0 || ++count == std::atol(text);
}

// Events that say too early that they have passed, where the host asks.
std::atomic<bool> events_pass{false};

}  // namespace

#define BEGIN(function) \
  if (const Result error_ = called(function); error_ != kSuccess) return error_
#define IN_CONTEXT \
  if (current.empty()) return kInvalidContext
// Of calls that CUDA calls potentially unsafe while a stream is captured.
#define UNDISTURBED \
  if (standin::disturbs_a_capture()) return kCaptureUnsupported

// What a call has found may be of a device that a kernel has stopped meanwhile.
static Result unless_stopped(Result found) { return is_stopped() ? kLaunchFailure : found; }

extern "C" {

Result cuInit(unsigned) {
  BEGIN("cuInit");
  return kSuccess;
}

Result cuDriverGetVersion(int* version) {
  BEGIN("cuDriverGetVersion");
  *version = 12040;
  return kSuccess;
}

Result cuGetErrorName(Result error, const char** name) {
  static const std::map<Result, const char*> names = {{kSuccess, "CUDA_SUCCESS"},
                                                      {kInvalidValue, "CUDA_ERROR_INVALID_VALUE"},
                                                      {kOutOfMemory, "CUDA_ERROR_OUT_OF_MEMORY"},
                                                      {kNoDevice, "CUDA_ERROR_NO_DEVICE"},
                                                      {kInvalidContext, "CUDA_ERROR_INVALID_CONTEXT"},
                                                      {kInvalidHandle, "CUDA_ERROR_INVALID_HANDLE"},
                                                      {kNotFound, "CUDA_ERROR_NOT_FOUND"},
                                                      {kNotReady, "CUDA_ERROR_NOT_READY"},
                                                      {700, "CUDA_ERROR_ILLEGAL_ADDRESS"},
                                                      {kLaunchFailure, "CUDA_ERROR_LAUNCH_FAILED"},
                                                      {kIllegalState, "CUDA_ERROR_ILLEGAL_STATE"},
                                                      {kCaptureUnsupported, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
                                                      {kCaptureInvalidated, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"},
                                                      {kCaptureMerge, "CUDA_ERROR_STREAM_CAPTURE_MERGE"},
                                                      {kCaptureUnmatched, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED"},
                                                      {kCaptureUnjoined, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED"},
                                                      {kCaptureIsolation, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION"},
                                                      {kCaptureImplicit, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT"},
                                                      {kCapturedEvent, "CUDA_ERROR_CAPTURED_EVENT"},
                                                      {kCaptureWrongThread, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD"}};
  const auto found = names.find(error);
  *name = found == names.end() ? nullptr : found->second;
  return found == names.end() ? kInvalidValue : kSuccess;
}

Result cuGetErrorString(Result error, const char** text) {
  static thread_local std::string said;
  said = "stand-in error " + std::to_string(error);
  *text = said.c_str();
  return kSuccess;
}

Result cuDeviceGetCount(int* count) {
  BEGIN("cuDeviceGetCount");
  *count = devices();
  return kSuccess;
}

Result cuDeviceGet(DeviceHandle* device, int ordinal) {
  BEGIN("cuDeviceGet");
  if (ordinal < 0 || ordinal >= devices()) return 101;
  *device = ordinal;
  return kSuccess;
}

Result cuDeviceGetName(char* name, int length, DeviceHandle) {
  BEGIN("cuDeviceGetName");
  std::strncpy(name, "stand-in", static_cast<size_t>(length));
  return kSuccess;
}

// The device of a number is the same one in each process of the host, unless each is to have its own.
Result cuDeviceGetUuid_v2(Uuid* uuid, DeviceHandle device) {
  BEGIN("cuDeviceGetUuid_v2");
  std::memset(uuid, 0, sizeof *uuid);
  const int owner = setting("RINGDP_STANDIN_RANK_DEVICES") ? getpid() : 0;
  std::memcpy(uuid->bytes, &device, sizeof device);
  std::memcpy(uuid->bytes + 8, &owner, sizeof owner);
  return kSuccess;
}

Result cuDevicePrimaryCtxRetain(Context* context, DeviceHandle device) {
  BEGIN("cuDevicePrimaryCtxRetain");
  *context = context_of(device);
  return kSuccess;
}

Result cuCtxPushCurrent_v2(Context context) {
  BEGIN("cuCtxPushCurrent_v2");
  if (device_of(context) < 0 || device_of(context) >= devices()) return kInvalidContext;
  current.push_back(device_of(context));
  return kSuccess;
}

Result cuCtxPopCurrent_v2(Context* context) {
  called("cuCtxPopCurrent_v2");  // also when everything fails: the stack is the thread's own
  if (current.empty()) return kInvalidContext;
  *context = context_of(current.back());
  current.pop_back();
  return kSuccess;
}

Result cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  BEGIN("cuCtxGetStreamPriorityRange");
  IN_CONTEXT;
  *least = 0, *greatest = -5;
  return kSuccess;
}

Result cuMemGetInfo_v2(size_t* free, size_t* total) {
  BEGIN("cuMemGetInfo_v2");
  IN_CONTEXT;
  *total = Memory::limit();
  *free = *total - Memory::instance().used(current.back());
  return kSuccess;
}

Result cuMemAlloc_v2(Address* address, size_t bytes) {
  BEGIN("cuMemAlloc_v2");
  IN_CONTEXT;
  UNDISTURBED;
  if (bytes == 0) return kInvalidValue;
  *address = Memory::instance().allocate(current.back(), bytes);
  return *address == 0 ? kOutOfMemory : kSuccess;
}

Result cuMemFree_v2(Address address) {
  BEGIN("cuMemFree_v2");
  IN_CONTEXT;
  UNDISTURBED;
  if (address != 0) Memory::instance().free(address);
  return kSuccess;
}

// Whether the host has so little memory for this device (RINGDP_STANDIN_LITTLE_PINNED=device:most bytes at a time).
static bool is_too_much_pinned(size_t bytes) {
  const char* text = setting("RINGDP_STANDIN_LITTLE_PINNED");
  if (text == nullptr || std::atoi(text) != current.back()) return false;
  return bytes > std::strtoul(std::strchr(text, ':') + 1, nullptr, 10);
}

Result cuMemHostAlloc(void** memory, size_t bytes, unsigned) {
  BEGIN("cuMemHostAlloc");
  IN_CONTEXT;
  UNDISTURBED;
  if (is_too_much_pinned(bytes)) return kOutOfMemory;
  *memory = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  if (*memory == nullptr) return kOutOfMemory;
  std::memset(*memory, 0xCD, bytes);
  std::lock_guard lock(pinned_mutex);
  pinned()[*memory] = bytes;
  return kSuccess;
}

Result cuPointerGetAttribute(void* value, int attribute, Address address) {
  BEGIN("cuPointerGetAttribute");
  const int device = Memory::instance().device_of(address);
  bool is_pinned = false;
  {
    std::lock_guard lock(pinned_mutex);
    const auto* memory = reinterpret_cast<const char*>(address);
    for (const auto& [begin, bytes] : pinned())
      is_pinned |= memory >= begin && memory < static_cast<const char*>(begin) + bytes;
  }
  if (device < 0 && !is_pinned) return kInvalidValue;
  if (attribute == kPointerMemoryType)
    *static_cast<unsigned*>(value) = device < 0 ? kMemoryTypeHost : kMemoryTypeDevice;
  else if (attribute == kPointerDeviceOrdinal)
    *static_cast<int*>(value) = device < 0 ? 0 : device;
  else
    return kInvalidValue;
  return kSuccess;
}

// --- copies: the host's side is touched when the copy runs ----------------------------------------------------------------

Result cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, Stream stream) {
  BEGIN("cuMemcpyHtoDAsync_v2");
  IN_CONTEXT;
  standin::Stream* in = at(stream);
  if (in == nullptr) return kInvalidHandle;
  device_memory(to, bytes, "cuMemcpyHtoDAsync");
  check_pinned(from, bytes, "cuMemcpyHtoDAsync");
  const size_t off = wrong_offset(bytes);
  return give(*in, [=] {
    std::byte* reached = device_memory(to, bytes, "cuMemcpyHtoDAsync");
    std::memcpy(reached, static_cast<const std::byte*>(from) + off, bytes - off);
  });
}

Result cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, Stream stream) {
  BEGIN("cuMemcpyDtoHAsync_v2");
  IN_CONTEXT;
  standin::Stream* in = at(stream);
  if (in == nullptr) return kInvalidHandle;
  device_memory(from, bytes, "cuMemcpyDtoHAsync");
  check_pinned(to, bytes, "cuMemcpyDtoHAsync");
  return give(*in, [=] { std::memcpy(to, device_memory(from, bytes, "cuMemcpyDtoHAsync"), bytes); });
}

Result cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, Stream stream) {
  BEGIN("cuMemcpyDtoDAsync_v2");
  IN_CONTEXT;
  standin::Stream* in = at(stream);
  if (in == nullptr) return kInvalidHandle;
  device_memory(to, bytes, "cuMemcpyDtoDAsync");
  device_memory(from, bytes, "cuMemcpyDtoDAsync");
  return give(*in, [=] {
    std::byte* target = device_memory(to, bytes, "cuMemcpyDtoDAsync");
    std::memmove(target, device_memory(from, bytes, "cuMemcpyDtoDAsync"), bytes);
  });
}

Result cuMemsetD8Async(Address to, unsigned char value, size_t bytes, Stream stream) {
  BEGIN("cuMemsetD8Async");
  IN_CONTEXT;
  standin::Stream* in = at(stream);
  if (in == nullptr) return kInvalidHandle;
  device_memory(to, bytes, "cuMemsetD8Async");
  return give(*in, [=] { std::memset(device_memory(to, bytes, "cuMemsetD8Async"), value, bytes); });
}

// --- streams -----------------------------------------------------------------------------------------------------------------

Result cuStreamCreateWithPriority(Stream* stream, unsigned flags, int) {
  BEGIN("cuStreamCreateWithPriority");
  IN_CONTEXT;
  const Order order = flags & kStreamNonBlocking ? Order::none : Order::blocking;
  *stream = reinterpret_cast<Stream>(streams().add(current.back(), order));
  return kSuccess;
}

Result cuStreamSynchronize(Stream stream) {
  BEGIN("cuStreamSynchronize");
  IN_CONTEXT;
  UNDISTURBED;
  standin::Stream* of = at(stream);
  if (of == nullptr) return kInvalidHandle;
  {
    std::lock_guard lock(capture_mutex());
    const Result refused = refusal(*of);
    if (of->capture) of->capture->is_invalid = true;
    if (refused != kSuccess || of->capture) return of->capture ? kCaptureUnsupported : refused;
  }
  of->synchronize();
  return unless_stopped(kSuccess);
}

// --- captures and graphs ------------------------------------------------------------------------------------------------------

constexpr int kCaptureInvalid = 2;  // the status of a stream, beside the core's

static Result capture_info(Stream stream, int* status, uint64_t* id, Graph* graph, const GraphNode** dependencies,
                           size_t* count) {
  standin::Stream* of = at(stream);
  if (of == nullptr) return kInvalidHandle;
  std::lock_guard lock(capture_mutex());
  if (standin::is_unusable(*of)) return kCaptureImplicit;
  const auto& capture = of->capture;
  *status = !capture ? kCaptureNone : capture->is_invalid ? kCaptureInvalid : kCaptureActive;
  if (*status != kCaptureActive) return kSuccess;
  if (id != nullptr) *id = capture->id;
  if (graph != nullptr) *graph = reinterpret_cast<Graph>(capture->graph());
  const auto& nodes = capture->dependencies(*of);
  if (dependencies != nullptr) *dependencies = reinterpret_cast<const GraphNode*>(nodes.data());
  if (count != nullptr) *count = nodes.size();
  return kSuccess;
}

Result cuStreamGetCaptureInfo_v2(Stream stream, int* status, uint64_t* id, Graph* graph, const GraphNode** dependencies,
                                 size_t* count) {
  BEGIN("cuStreamGetCaptureInfo_v2");
  IN_CONTEXT;
  return capture_info(stream, status, id, graph, dependencies, count);
}

Result cuStreamIsCapturing(Stream stream, int* status) {
  BEGIN("cuStreamIsCapturing");
  IN_CONTEXT;
  return capture_info(stream, status, nullptr, nullptr, nullptr, nullptr);
}

Result cuThreadExchangeStreamCaptureMode(int* mode) {
  BEGIN("cuThreadExchangeStreamCaptureMode");
  if (*mode < standin::global || *mode > standin::relaxed) return kInvalidValue;
  std::swap(*mode, standin::mode_of_thread());
  return kSuccess;
}

Result cuStreamBeginCapture_v2(Stream stream, int mode) {
  BEGIN("cuStreamBeginCapture_v2");
  IN_CONTEXT;
  standin::Stream* of = at(stream);
  if (of == nullptr || mode < standin::global || mode > standin::relaxed)
    return of == nullptr ? kInvalidHandle : kInvalidValue;
  return standin::begin_capture(*of, mode);
}

Result cuStreamEndCapture(Stream stream, Graph* graph) {
  BEGIN("cuStreamEndCapture");
  IN_CONTEXT;
  *graph = nullptr;
  standin::Stream* of = at(stream);
  if (of == nullptr) return kInvalidHandle;
  std::shared_ptr<standin::Graph> captured;  // outlives the lock, as what it holds may end with it
  std::lock_guard lock(capture_mutex());
  const auto capture = of->capture;
  if (!capture) return kIllegalState;
  if (&capture->origin != of) return kCaptureUnmatched;
  if (capture->mode != standin::relaxed && capture->thread != std::this_thread::get_id()) return kCaptureWrongThread;
  const bool is_joined = capture->is_joined();
  captured = capture->end();
  if (capture->is_invalid) return kCaptureInvalidated;
  if (!is_joined) return kCaptureUnjoined;
  *graph = reinterpret_cast<Graph>(captured.get());
  graphs().add(captured);
  return kSuccess;
}

Result cuGraphInstantiateWithFlags(GraphExec* executable, Graph graph, unsigned long long) {
  BEGIN("cuGraphInstantiateWithFlags");
  IN_CONTEXT;
  const std::shared_ptr<standin::Graph>* found = at(graph);
  if (found == nullptr) return kInvalidHandle;
  *executable = reinterpret_cast<GraphExec>(executables().add(*found, current.back()));
  return kSuccess;
}

Result cuGraphLaunch(GraphExec executable, Stream stream) {
  BEGIN("cuGraphLaunch");
  IN_CONTEXT;
  standin::Executable* found = executables().find(executable);
  standin::Stream* of = at(stream);
  if (found == nullptr || of == nullptr) return kInvalidHandle;
  std::lock_guard lock(capture_mutex());
  if (of->capture) misuse("cuGraphLaunch into a stream that is captured: this stand-in knows no graphs in graphs");
  if (const Result refused = refusal(*of); refused != kSuccess) return refused;
  found->launch(*of);
  return kSuccess;
}

// What it still does is done, and what it holds ends behind that; the caller does not wait.
Result cuGraphExecDestroy(GraphExec executable) {
  BEGIN("cuGraphExecDestroy");
  auto gone = executables().remove(executable);
  if (!gone) return kInvalidHandle;
  if (!gone->idle()) std::thread([gone = std::move(gone)] {}).detach();
  return kSuccess;
}

Result cuGraphDestroy(Graph graph) {
  BEGIN("cuGraphDestroy");
  return graphs().remove(at(graph)) ? kSuccess : kInvalidHandle;
}

Result cuUserObjectCreate(UserObject* object, void* given, void (*destroy)(void*), unsigned references,
                          unsigned flags) {
  BEGIN("cuUserObjectCreate");
  if (destroy == nullptr || references == 0 || flags != kNoDestructorSync) return kInvalidValue;
  auto made = std::make_shared<standin::UserObject>(given, destroy);
  *object = reinterpret_cast<UserObject>(user_objects().add(OwnedObject{std::move(made), references}));
  return kSuccess;
}

// Of a graph that is being captured, too. The references are the caller's no more.
Result cuGraphRetainUserObject(Graph graph, UserObject object, unsigned count, unsigned flags) {
  BEGIN("cuGraphRetainUserObject");
  if (flags != kMoveReferences) misuse("cuGraphRetainUserObject that does not move references");
  std::lock_guard lock(capture_mutex());
  const std::shared_ptr<standin::Graph>* kept = at(graph);
  standin::Graph* holder = kept != nullptr ? kept->get() : standin::captured_graph(graph);
  OwnedObject* owned = user_objects().find(object);
  if (holder == nullptr || owned == nullptr) return kInvalidHandle;
  if (count == 0 || count > owned->references) return kInvalidValue;
  holder->held.push_back(owned->object);
  owned->references -= count;
  if (owned->references == 0) user_objects().remove(object);
  return kSuccess;
}

// --- events ------------------------------------------------------------------------------------------------------------------

Result cuStreamWaitEvent(Stream stream, Event event, unsigned) {
  BEGIN("cuStreamWaitEvent");
  IN_CONTEXT;
  standin::Stream* of = at(stream);
  standin::Event* until = at(event);
  if (of == nullptr || until == nullptr) return kInvalidHandle;
  return drops_wait() ? kSuccess : until->hold_up(*of);
}

Result cuEventCreate(Event* event, unsigned) {
  BEGIN("cuEventCreate");
  IN_CONTEXT;
  *event = reinterpret_cast<Event>(events().add(current.back()));
  return kSuccess;
}

Result cuEventRecord(Event event, Stream stream) {
  BEGIN("cuEventRecord");
  IN_CONTEXT;
  standin::Stream* of = at(stream);
  standin::Event* recorded = at(event);
  if (of == nullptr || recorded == nullptr || of->device() != recorded->device()) return kInvalidHandle;
  return recorded->record(*of);
}

Result cuEventQuery(Event event) {
  BEGIN("cuEventQuery");
  UNDISTURBED;
  standin::Event* asked = at(event);
  if (asked == nullptr) return kInvalidHandle;
  if (asked->asking_disturbs()) return kCapturedEvent;
  return unless_stopped(events_pass || asked->passed() ? kSuccess : kNotReady);
}

// For the tests' own events, as ringdp's have no times.
Result cuEventSynchronize(Event event) {
  BEGIN("cuEventSynchronize");
  UNDISTURBED;
  standin::Event* asked = at(event);
  if (asked == nullptr) return kInvalidHandle;
  if (asked->asking_disturbs()) return kCapturedEvent;
  asked->synchronize();
  return unless_stopped(kSuccess);
}

Result cuEventElapsedTime(float* milliseconds, Event from, Event to) {
  BEGIN("cuEventElapsedTime");
  standin::Event *first = at(from), *last = at(to);
  if (first == nullptr || last == nullptr) return kInvalidHandle;
  if (first->asking_disturbs() || last->asking_disturbs()) return kCapturedEvent;
  if (!first->passed() || !last->passed()) return kNotReady;
  *milliseconds = static_cast<float>((last->seconds() - first->seconds()) * 1e3);
  return kSuccess;
}

// --- kernels: those of kernels.cc, compiled for the host -------------------------------------------------------------------

Result cuModuleLoadData(Module* module, const void* image) {
  BEGIN("cuModuleLoadData");
  IN_CONTEXT;
  UNDISTURBED;
  if (image == nullptr) return kInvalidValue;
  if (refuses_modules(current.back())) return kNoImage;
  *module = reinterpret_cast<Module>(static_cast<uintptr_t>(0xF00D));
  return kSuccess;
}

Result cuModuleGetFunction(Function* function, Module, const char* name) {
  BEGIN("cuModuleGetFunction");
  size_t count = 0;
  const StandinKernel* kernels = standin_kernels(&count);
  for (size_t i = 0; i < count; ++i)
    if (std::strcmp(kernels[i].name, name) == 0) {
      *function = reinterpret_cast<Function>(const_cast<StandinKernel*>(kernels + i));
      return kSuccess;
    }
  return kNotFound;
}

Result cuLaunchKernel(Function function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                      unsigned block_y, unsigned block_z, unsigned, Stream stream, void** parameters, void** extra) {
  BEGIN("cuLaunchKernel");
  IN_CONTEXT;
  standin::Stream* in = at(stream);
  if (in == nullptr) return kInvalidHandle;
  const bool flat = grid_y == 1 && grid_z == 1 && block_y == 1 && block_z == 1;
  if (!flat || grid_x == 0 || grid_x > 0x7fffffffu || block_x == 0 || block_x > 1024 || extra != nullptr)
    return kInvalidValue;
  const auto* kernel = reinterpret_cast<const StandinKernel*>(function);
  auto copy = std::make_shared<std::vector<std::byte>>(kernel->parameter_bytes);
  std::memcpy(copy->data(), parameters[0], copy->size());
  if (leaves_out(kernel->name)) return kSuccess;
  return give(*in, [=] {
    kernel->run(grid_x, block_x, copy->data());
    spoil(*kernel, copy->data());
    Memory::instance().check_gaps();
  });
}

// --- for tests ---------------------------------------------------------------------------------------------------------------

void standin_read(Address from, void* to, size_t bytes) {
  std::memcpy(to, Memory::instance().reach(from, bytes, "standin_read"), bytes);
}

void standin_write(Address to, const void* from, size_t bytes) {
  std::memcpy(Memory::instance().reach(to, bytes, "standin_write"), from, bytes);
}

int standin_hold(Stream stream) {
  if (capture_of(*at(stream))) misuse("standin_hold of a stream that is captured");
  std::lock_guard lock(held_mutex);
  held().emplace_back();
  at(stream)->push([until = held().back().get_future().share()] {
    while (until.wait_for(std::chrono::milliseconds(1)) != std::future_status::ready && !is_stopped()) {
    }
  });
  return static_cast<int>(held().size()) - 1;
}

void standin_release(int hold) {
  std::lock_guard lock(held_mutex);
  held()[static_cast<size_t>(hold)].set_value();
}

void standin_events_pass(int early) { events_pass = early != 0; }

void standin_synchronize_all() {
  streams().for_each([](standin::Stream& stream) { stream.synchronize(); });
}

long standin_calls(const char* function) {
  std::lock_guard lock(faults().mutex);
  return faults().calls[function];
}

long standin_live(const char* what) {
  const std::string name = what;
  if (name == "allocations") return Memory::instance().live();
  if (name == "streams") return streams().count();
  if (name == "events") return events().count();
  if (name == "graphs") return graphs().count() + executables().count();
  if (name == "user objects") return standin::UserObject::live();
  if (name != "pinned") misuse("standin_live of '" + name + "'");
  std::lock_guard lock(pinned_mutex);
  return static_cast<long>(pinned().size());
}

void standin_fail(const char* function, int after, int error) {
  std::lock_guard lock(faults().mutex);
  faults().faults[function] = {after, error};
}

Stream standin_stream(Stream stream, int device) {
  standin::Stream* found = at(stream, device);
  if (found == nullptr) misuse("a stream that is none");
  if (found->device() != device) misuse("a stream of another GPU than the communicator's");
  return reinterpret_cast<Stream>(found);
}

uint64_t standin_capture(Stream stream) {
  const auto capture = capture_of(*streams().find(stream));
  return capture ? capture->id : 0;
}

Result standin_enqueue(Stream stream, uint64_t capture, std::function<void()>* work) {
  const std::unique_ptr<std::function<void()>> owned(work);
  standin::Stream& to = *streams().find(stream);
  std::lock_guard lock(capture_mutex());
  if (standin_capture(stream) != capture) return kCaptureUnmatched;
  if (const Result refused = refusal(to); refused != kSuccess) return refused;
  to.capture ? to.capture->add(to, std::move(*owned)) : to.push_mark(std::move(*owned));
  return kSuccess;
}

int standin_stopped() { return is_stopped(); }

// From now on no call says that all is well, and then nothing that was not done looks as if it were.
void standin_trap() {
  {
    std::lock_guard lock(faults().mutex);
    faults().sticky = kLaunchFailure;
  }
  standin::stop_all();
}

void standin_check_pinned(uint64_t at, size_t bytes) {
  std::lock_guard lock(pinned_mutex);
  const auto* from = reinterpret_cast<const char*>(at);
  auto block = pinned().upper_bound(from);
  if (block != pinned().begin()) {
    const auto* begin = static_cast<const char*>((--block)->first);
    if (from + bytes <= begin + block->second) return;
  }
  misuse("a kernel at an address that is neither the GPU's nor pinned");
}

std::byte* standin_reach(Address at, size_t bytes, const char* who, int device) {
  return Memory::instance().reach(at, bytes, who, device);
}

int standin_ordinal() {
  if (current.empty()) misuse("no context is current");
  return current.back();
}

Uuid standin_uuid() {
  Uuid uuid;
  cuDeviceGetUuid_v2(&uuid, standin_ordinal());
  return uuid;
}
}
