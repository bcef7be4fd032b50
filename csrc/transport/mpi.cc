#include "transport/mpi.h"

#include <dlfcn.h>
#include <unistd.h>

#include <chrono>
#include <limits>
#include <mutex>
#include <thread>

#include "base/check.h"
#include "base/deadline.h"
#include "base/elastic.h"
#include "transport/mpi/table.h"

namespace ringdp {

namespace {

const ringdp_mpi_table* table = nullptr;

// `code`: what the call has returned.
[[noreturn]] void mpi_failed(int code) {
  fail(code == -2 ? ErrorKind::peer : ErrorKind::transport, table->error_text());
}

class MpiTransport final : public Transport {
 public:
  explicit MpiTransport(uint64_t comm) : channel_(table->open(comm)) {
    if (channel_ == nullptr) mpi_failed(-1);
  }
  ~MpiTransport() override { table->close(channel_); }
  MpiTransport(const MpiTransport&) = delete;
  MpiTransport& operator=(const MpiTransport&) = delete;

  int rank() const override { return table->rank(channel_); }
  int size() const override { return table->size(channel_); }
  int max_tag() const override { return table->max_tag(channel_); }
  TakesGpuMemory takes_gpu_memory() const override { return mpi_takes_gpu_memory(); }

  Request send(int peer, int tag, const void* data, size_t bytes) override {
    RINGDP_CHECK(bytes <= kMaxMessage);
    Request request;
    if (const int code = table->send(channel_, peer, tag, data, bytes, &request.handle); code < 0) mpi_failed(code);
    return request;
  }

  Request receive(int peer, int tag, void* data, size_t bytes) override {
    RINGDP_CHECK(bytes <= kMaxMessage);
    Request request;
    if (const int code = table->receive(channel_, peer, tag, data, bytes, &request.handle); code < 0) mpi_failed(code);
    return request;
  }

  bool test(Request& request, size_t* received) override {
    RINGDP_CHECK(request.pending(), "a request that is over is tested again");
    size_t bytes = 0;
    const int done = table->test(channel_, &request.handle, &bytes);
    if (done < 0) mpi_failed(done);
    if (done == 1 && received) *received = bytes;
    return done == 1;
  }

  int arrived(int tag, size_t* bytes) override {
    int from = -1;
    const int found = table->arrived(channel_, tag, &from, bytes);
    if (found < 0) mpi_failed(found);
    return found == 1 ? from : -1;
  }

  int lost() override { return table->lost(channel_); }

  void cancel(Request& request) override {
    if (!request.pending()) return;
    if (const int code = table->cancel(channel_, &request.handle); code < 0) mpi_failed(code);
  }

  // The engine asks in each turn that moves nothing; each answer takes two calls of MPI.
  bool is_revoked() const override {
    if (!is_elastic_ || Clock::now() - asked_ < kBetweenLooks) return false;
    asked_ = Clock::now();
    return table->is_revoked(channel_) == 1;
  }
  int64_t pending() const override { return table->pending(channel_); }

  // Under Slurm's PMI-2 MPICH's MPI_Abort comes back before the ranks are killed. One that left meanwhile would be taken for
  // one that has shut ringdp down.
  [[noreturn]] void abort(int code) override {
    table->abort(code);
    std::this_thread::sleep_for(kLauncherTakes);
    _exit(code);
  }

 private:
  // MPI counts are int, and Open MPI 5 has no functions with 64-bit counts: segments keep messages far below.
  static constexpr std::chrono::seconds kLauncherTakes{10};  // to kill the ranks, at the most
  static constexpr size_t kMaxMessage = std::numeric_limits<int>::max();
  static constexpr std::chrono::milliseconds kBetweenLooks{1};  // for ranks that are lost
  void* channel_;
  const bool is_elastic_ = goes_on_without_lost_ranks();
  mutable Clock::time_point asked_;
};

}  // namespace

std::string load_mpi_unit(const std::string& path) {
  static std::mutex mutex;
  static std::string loaded;
  std::lock_guard lock(mutex);
  if (table != nullptr) {
    if (path != loaded) fail(ErrorKind::usage, "the MPI unit ", loaded, " is loaded already; cannot load ", path);
    return table->made_for;
  }
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) fail(ErrorKind::transport, "cannot load the MPI unit: ", dlerror());
  using Entry = const ringdp_mpi_table* (*)();
  const auto entry = reinterpret_cast<Entry>(dlsym(library, RINGDP_MPI_TABLE_SYMBOL));
  if (entry == nullptr) fail(ErrorKind::transport, path, " is no MPI unit of ringdp: ", dlerror());
  if (entry()->version != RINGDP_MPI_TABLE_VERSION)
    fail(ErrorKind::transport, "the MPI unit ", path, " is of another version of ringdp: reinstall ringdp");
  table = entry();
  loaded = path;
  return table->made_for;
}

TakesGpuMemory mpi_takes_gpu_memory() {
  if (table == nullptr) fail(ErrorKind::internal, "the MPI unit is not loaded");
  const int said = table->takes_gpu_memory();
  return said < 0 ? TakesGpuMemory::unknown : said > 0 ? TakesGpuMemory::yes : TakesGpuMemory::no;
}

std::unique_ptr<Transport> make_mpi_transport(uint64_t comm) {
  if (table == nullptr) fail(ErrorKind::internal, "the MPI unit is not loaded");
  return std::make_unique<MpiTransport>(comm);
}

}  // namespace ringdp
