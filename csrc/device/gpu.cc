#include "device/gpu.h"

#include <utility>

#include "device/libraries.h"

namespace ringdp {

namespace {

constexpr size_t kLeastBlock = 64 << 10;

const cuda::Driver& driver_or_fail() {
  const Found<cuda::Driver>& found = cuda_driver();
  if (found.functions == nullptr)
    fail(ErrorKind::gpu, "this process has no GPU that ringdp can use: ", found.missing,
         " (RINGDP_CUDA_LIBRARY names another libcuda)");
  return *found.functions;
}

cuda::Address address_of(const void* memory) { return reinterpret_cast<cuda::Address>(memory); }

size_t rounded(size_t bytes) {  // to a power of two, so that blocks fit the next bucket, too
  size_t block = kLeastBlock;
  while (block < bytes) block *= 2;
  return block;
}

}  // namespace

Gpu& Gpu::of(int ordinal) {
  static std::mutex mutex;
  // Never destroyed: at the end of a process the driver may be gone before our memory is.
  static auto& gpus = *new std::map<int, std::unique_ptr<Gpu>>;
  std::lock_guard lock(mutex);
  std::unique_ptr<Gpu>& gpu = gpus[ordinal];
  if (!gpu) gpu.reset(new Gpu(ordinal));
  return *gpu;
}

int Gpu::ordinal_of(const void* address) {
  const cuda::Driver* driver = cuda_driver().functions;
  unsigned type = 0;
  int ordinal = -1;
  if (driver == nullptr || address == nullptr) return -1;
  if (driver->pointer_attribute(&type, cuda::kPointerMemoryType, address_of(address)) != cuda::kSuccess) return -1;
  if (type != cuda::kMemoryTypeDevice) return -1;
  if (driver->pointer_attribute(&ordinal, cuda::kPointerDeviceOrdinal, address_of(address)) != cuda::kSuccess)
    return -1;
  return ordinal;
}

Gpu::Gpu(int ordinal) : ordinal_(ordinal), driver_(driver_or_fail()) {
  int count = 0;
  check(driver_.device_count(&count), "cuDeviceGetCount");
  if (ordinal < 0 || ordinal >= count)
    fail(ErrorKind::gpu, "there is no GPU ", ordinal, ": this process sees ", count,
         " (CUDA_VISIBLE_DEVICES says which)");
  cuda::DeviceHandle device = 0;
  char name[128] = "";
  check(driver_.device_get(&device, ordinal), "cuDeviceGet");
  check(driver_.device_name(name, sizeof name, device), "cuDeviceGetName");
  check(driver_.device_uuid(&uuid_, device), "cuDeviceGetUuid");
  check(driver_.primary_retain(&context_, device), "cuDevicePrimaryCtxRetain");
  name_ = name;
  to_host_ = new_stream(), from_host_ = new_stream(), exchange_ = new_stream();
}

std::string Gpu::label() const { return "GPU " + std::to_string(ordinal_) + (name_.empty() ? "" : " (" + name_ + ")"); }

cuda::Stream Gpu::new_stream() {
  const Current current(*this);
  int least = 0, greatest = 0;
  cuda::Stream stream = nullptr;
  check(driver_.stream_priorities(&least, &greatest), "cuCtxGetStreamPriorityRange");
  check(driver_.stream_create(&stream, cuda::kStreamNonBlocking, greatest), "cuStreamCreateWithPriority");
  return stream;
}

void Gpu::check(cuda::Result result, const char* call) const {
  if (result == cuda::kSuccess) return;
  const char *name = nullptr, *text = nullptr;
  driver_.name_of_error(result, &name);
  driver_.text_of_error(result, &text);
  fail(ErrorKind::gpu, label(), ": ", call, " failed: ", name ? name : "CUDA error " + std::to_string(result), " (",
       text ? text : "no text", ")");
}

void Gpu::out_of_memory(const char* what, size_t bytes) const {
  size_t free = 0, total = 0;
  driver_.memory_info(&free, &total);
  fail(ErrorKind::gpu, label(), ": no memory for ", bytes, " bytes of ", what, "; of its own ", free, " of ", total,
       " bytes are free");
}

// --- the current context --------------------------------------------------------------------------------------------

Gpu::Current::Current(const Gpu& gpu) : driver_(gpu.driver_) {
  gpu.check(driver_.context_push(gpu.context_), "cuCtxPushCurrent");
  capture_mode_ = cuda::kCaptureRelaxed;
  driver_.exchange_capture_mode(&capture_mode_);  // fails only where everything does
}

Gpu::Current::~Current() {
  cuda::Context popped = nullptr;
  driver_.exchange_capture_mode(&capture_mode_);
  driver_.context_pop(&popped);
}

// --- events -----------------------------------------------------------------------------------------------------------

Gpu::Point Gpu::record(cuda::Stream stream, bool in_graph) {
  const Current current(*this);
  cuda::Event event = nullptr;
  {
    std::lock_guard lock(events_mutex_);
    if (!spare_events_.empty()) event = spare_events_.back(), spare_events_.pop_back();
  }
  if (event == nullptr) check(driver_.event_create(&event, cuda::kEventDisableTiming), "cuEventCreate");
  Point point(new Event(*this, event, in_graph), [](const Event* e) {
    e->gpu_.give_back(e->event_);
    delete e;
  });
  check(driver_.event_record(event, stream), "cuEventRecord");
  return point;
}

void Gpu::give_back(cuda::Event event) {
  std::lock_guard lock(events_mutex_);
  spare_events_.push_back(event);
}

bool Gpu::Event::passed() const {
  if (passed_) return true;
  const Current current(gpu_);
  const cuda::Result result = gpu_.driver_.event_query(event_);
  if (result == cuda::kNotReady) return false;
  gpu_.check(result, "cuEventQuery");
  return passed_ = true;
}

void Gpu::Event::hold_up(cuda::Stream stream) const {
  const Current current(gpu_);
  gpu_.check(gpu_.driver_.stream_wait(stream, event_, 0), "cuStreamWaitEvent");
}

// --- memory that is lent ----------------------------------------------------------------------------------------------

std::shared_ptr<Gpu::Pinned> Gpu::pinned(size_t bytes) {
  return lend(pinned_, rounded(bytes), [this](size_t whole) { return new_pinned(whole); });
}

std::shared_ptr<Gpu::Lent> Gpu::room(size_t bytes) {
  return lend(rooms_, rounded(bytes), [this](size_t whole) {
    const std::shared_ptr<Block> block = allocate(whole);
    block->is_lost = true;  // kept as long as the process
    return block->data;
  });
}

void* Gpu::new_pinned(size_t bytes) {
  const Current current(*this);
  void* data = nullptr;
  const cuda::Result result = driver_.host_allocate(&data, bytes, cuda::kHostPortable);
  if (result == cuda::kOutOfMemory) out_of_memory("pinned host memory", bytes);
  check(result, "cuMemHostAlloc");
  return data;
}

template <class Allocate>
std::shared_ptr<Gpu::Lent> Gpu::lend(Pool& pool, size_t bytes, const Allocate& allocate) {
  std::unique_ptr<Lent> block = spare_block(pool, bytes);
  if (!block) {
    block.reset(new Lent);
    block->bytes_ = bytes;
    block->data_ = allocate(bytes);
  }
  return {block.release(), [&pool](Lent* last) { give_back(pool, std::unique_ptr<Lent>(last)); }};
}

// Of just these bytes, and no GPU uses it any more.
std::unique_ptr<Gpu::Lent> Gpu::spare_block(Pool& pool, size_t bytes) {
  std::lock_guard lock(pool.mutex);
  const auto [first, last] = pool.spare.equal_range(bytes);
  for (auto block = first; block != last; ++block) {
    std::vector<Point>& until = block->second->until_;
    while (!until.empty() && until.back()->passed()) until.pop_back();
    if (!until.empty()) continue;
    std::unique_ptr<Lent> found = std::move(block->second);
    pool.spare.erase(block);
    return found;
  }
  return nullptr;
}

void Gpu::give_back(Pool& pool, std::unique_ptr<Lent> block) {
  if (block->is_lost_) return;
  std::lock_guard lock(pool.mutex);
  const size_t bytes = block->bytes_;
  pool.spare.emplace(bytes, std::move(block));
}

std::shared_ptr<Gpu::Block> Gpu::allocate(size_t bytes) {
  const Current current(*this);
  cuda::Address address = 0;
  const cuda::Result result = driver_.memory_allocate(&address, bytes);
  if (result == cuda::kOutOfMemory) out_of_memory("its memory", bytes);
  check(result, "cuMemAlloc");
  return {new Block{reinterpret_cast<void*>(address)}, [this](Block* last) {
            const std::unique_ptr<Block> block(last);
            if (block->is_lost) return;
            try {
              const Current inside(*this);
              driver_.memory_free(reinterpret_cast<cuda::Address>(block->data));
            } catch (const Error&) {  // then nothing works there any more
            }
          }};
}

void* Gpu::scratch(size_t bytes) {
  if (bytes == 0) return nullptr;
  std::lock_guard lock(scratch_mutex_);
  if (scratch_.empty() || scratch_.rbegin()->first < bytes) scratch_[rounded(bytes)] = allocate(rounded(bytes));
  return scratch_.rbegin()->second->data;
}

// --- copies -------------------------------------------------------------------------------------------------------------

void Gpu::copy_to_host(void* to, const void* from, size_t bytes, cuda::Stream stream) {
  if (bytes == 0) return;
  const Current current(*this);
  check(driver_.copy_to_host(to, address_of(from), bytes, stream), "cuMemcpyDtoHAsync");
}

void Gpu::copy_to_gpu(void* to, const void* from, size_t bytes, cuda::Stream stream) {
  if (bytes == 0) return;
  const Current current(*this);
  check(driver_.copy_to_device(address_of(to), from, bytes, stream), "cuMemcpyHtoDAsync");
}

void Gpu::copy_on_gpu(void* to, const void* from, size_t bytes, cuda::Stream stream) {
  if (bytes == 0 || to == from) return;
  const Current current(*this);
  check(driver_.copy_on_device(address_of(to), address_of(from), bytes, stream), "cuMemcpyDtoDAsync");
}

}  // namespace ringdp
