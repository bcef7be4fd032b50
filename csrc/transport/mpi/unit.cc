// The MPI unit: every MPI call of ringdp is in this file. Compiled with the flags of one MPI's mpicc.
//
// Receives are tested before sends, and each request on its own: a receive and a send in one MPI_Waitall abort the
// survivors of a killed rank under Open MPI, whatever the error handler (measured: a quarter to two thirds of runs).
#include <dlfcn.h>
#include <mpi.h>
#if defined(OPEN_MPI) && __has_include(<mpi-ext.h>)
#include <mpi-ext.h>
#endif

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include "transport/mpi/table.h"

namespace {

struct Channel {
  MPI_Comm comm;
  int rank, size, max_tag;
  int64_t pending = 0;  // requests
};

thread_local char error[MPI_MAX_ERROR_STRING + 64];

// ULFM: another process has died, or has told all others to leave this communicator.
bool is_about_others([[maybe_unused]] int code) {
#ifdef MPIX_ERR_PROC_FAILED
  int kind = MPI_SUCCESS;
  MPI_Error_class(code, &kind);
  return kind == MPIX_ERR_PROC_FAILED || kind == MPIX_ERR_PROC_FAILED_PENDING || kind == MPIX_ERR_REVOKED;
#else
  return false;
#endif
}

int failed(const char* call, int code) {
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) std::snprintf(text, sizeof text, "error %d", code);
  std::snprintf(error, sizeof error, "%s: %s", call, text);
  return is_about_others(code) ? -2 : -1;
}

template <class Handle>
Handle unpack(uint64_t bits) {
  static_assert(sizeof(Handle) <= sizeof bits, "MPI handles must fit into 64 bits");
  Handle handle;
  std::memcpy(&handle, &bits, sizeof handle);
  return handle;
}

// 0 stands for "no request" in the core: the top bit, which neither 32-bit handles nor user-space pointers use, marks
// one.
constexpr uint64_t kMark = uint64_t{1} << 63;
uint64_t pack(MPI_Request request) {
  uint64_t bits = 0;
  std::memcpy(&bits, &request, sizeof request);
  return bits | kMark;
}
MPI_Request request_of(uint64_t bits) { return unpack<MPI_Request>(bits & ~kMark); }

void* open_channel(uint64_t handle) {
  const MPI_Comm comm = unpack<MPI_Comm>(handle);
  int rank = 0, size = 0, found = 0;
  void* bound = nullptr;
  int code = MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
  if (code == MPI_SUCCESS) code = MPI_Comm_rank(comm, &rank);
  if (code == MPI_SUCCESS) code = MPI_Comm_size(comm, &size);
  if (code == MPI_SUCCESS) code = MPI_Comm_get_attr(comm, MPI_TAG_UB, &bound, &found);
  if (code != MPI_SUCCESS) {
    failed("opening a communicator", code);
    return nullptr;
  }
  return new (std::nothrow) Channel{comm, rank, size, found ? *static_cast<int*>(bound) : 32767};
}

void close_channel(void* c) { delete static_cast<Channel*>(c); }
int rank_of(void* c) { return static_cast<Channel*>(c)->rank; }
int size_of(void* c) { return static_cast<Channel*>(c)->size; }
int max_tag_of(void* c) { return static_cast<Channel*>(c)->max_tag; }

int send(void* c, int peer, int tag, const void* data, size_t bytes, uint64_t* out) {
  MPI_Request request;
  const int code =
      MPI_Isend(data, static_cast<int>(bytes), MPI_BYTE, peer, tag, static_cast<Channel*>(c)->comm, &request);
  if (code != MPI_SUCCESS) return failed("MPI_Isend", code);
  *out = pack(request);
  ++static_cast<Channel*>(c)->pending;
  return 0;
}

int receive(void* c, int peer, int tag, void* data, size_t bytes, uint64_t* out) {
  MPI_Request request;
  const int code =
      MPI_Irecv(data, static_cast<int>(bytes), MPI_BYTE, peer, tag, static_cast<Channel*>(c)->comm, &request);
  if (code != MPI_SUCCESS) return failed("MPI_Irecv", code);
  *out = pack(request);
  ++static_cast<Channel*>(c)->pending;
  return 0;
}

int test(void* c, uint64_t* bits, size_t* bytes) {
  MPI_Request request = request_of(*bits);
  MPI_Status status;
  int done = 0, count = 0;
  const int code = MPI_Test(&request, &done, &status);
  // MPI has one that has failed back, and may give it out again: to test it twice would free another message's. It still
  // counts as pending, for some of what it was to receive may be on its way.
  if (code != MPI_SUCCESS && request == MPI_REQUEST_NULL) *bits = 0;
  if (code != MPI_SUCCESS) return failed("MPI_Test", code);
  if (!done) return 0;
  *bits = 0;
  --static_cast<Channel*>(c)->pending;
  MPI_Get_count(&status, MPI_BYTE, &count);  // meaningless, but harmless, for a send
  *bytes = static_cast<size_t>(count);
  return 1;
}

// Where another process has died, MPI with ULFM looks for messages from anybody no more, but for those of the living it does.
int arrived(void* c, int tag, int* from, size_t* bytes) {
  const auto* channel = static_cast<Channel*>(c);
  MPI_Status status;
  int found = 0, count = 0;
  int code = MPI_Iprobe(MPI_ANY_SOURCE, tag, channel->comm, &found, &status);
  for (int peer = 0; code != MPI_SUCCESS && !found && peer < channel->size; ++peer)
    if (MPI_Iprobe(peer, tag, channel->comm, &found, &status) == MPI_SUCCESS && found) code = MPI_SUCCESS;
  if (code != MPI_SUCCESS) return failed("MPI_Iprobe", code);
  if (!found) return 0;
  MPI_Get_count(&status, MPI_BYTE, &count);
  *from = status.MPI_SOURCE;
  *bytes = static_cast<size_t>(count);
  return 1;
}

int cancel(void* c, uint64_t* bits) {
  MPI_Request request = request_of(*bits);
  int code = MPI_Cancel(&request);
  if (code == MPI_SUCCESS) code = MPI_Request_free(&request);
  *bits = 0;
  if (code == MPI_SUCCESS) --static_cast<Channel*>(c)->pending;
  return code == MPI_SUCCESS ? 0 : failed("MPI_Cancel", code);
}

void abort_job(int code) { MPI_Abort(MPI_COMM_WORLD, code); }
const char* error_text() { return error; }

// --- what only some MPIs have -----------------------------------------------------------------------------------------

// A function that only some builds of an MPI have. It is looked for in the library that is loaded, which may be another
// build than the one this was compiled with; not in the whole process, where another library may have one of that name.
template <class Function>
Function* extension(const char* name) {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&MPI_Isend), &info) == 0 || info.dli_fname == nullptr) return nullptr;
  void* library = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return nullptr;
  auto* found = reinterpret_cast<Function*>(dlsym(library, name));
  dlclose(library);  // it stays: the unit itself needs it
  return found;
}

// One that has implemented it (ULFM): the first of those that are gone.
int lost(void* c) {
  auto* failed_ranks = extension<int(MPI_Comm, MPI_Group*)>("MPIX_Comm_get_failed");
  const auto* channel = static_cast<Channel*>(c);
  MPI_Group gone = MPI_GROUP_NULL, all = MPI_GROUP_NULL;
  if (failed_ranks == nullptr || failed_ranks(channel->comm, &gone) != MPI_SUCCESS) return -1;
  int size = 0, first = 0, rank = MPI_UNDEFINED;
  if (MPI_Group_size(gone, &size) == MPI_SUCCESS && size > 0 && MPI_Comm_group(channel->comm, &all) == MPI_SUCCESS) {
    MPI_Group_translate_ranks(gone, 1, &first, all, &rank);
    MPI_Group_free(&all);
  }
  if (gone != MPI_GROUP_EMPTY) MPI_Group_free(&gone);
  return rank == MPI_UNDEFINED ? -1 : rank;
}

// Cray's takes memory of GPUs only where this is set, and crashes otherwise, whatever it was built with.
bool is_cray_without_gpus() {
  char version[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  MPI_Get_library_version(version, &length);
  if (std::strstr(version, "CRAY MPICH") == nullptr) return false;
  const char* enabled = std::getenv("MPICH_GPU_SUPPORT_ENABLED");
  return enabled == nullptr || std::strcmp(enabled, "1") != 0;
}

// MPICH and what is made of it, where MPIR_CVAR_ENABLE_GPU counts, too; then Open MPI, and others that have its function.
int takes_gpu_memory() {
  constexpr int kCuda = 0;  // MPIX_GPU_SUPPORT_CUDA
  if (is_cray_without_gpus()) return 0;
  if (auto* query = extension<int(int, int*)>("MPIX_GPU_query_support")) {
    int answer = 0;
    return query(kCuda, &answer) == MPI_SUCCESS && answer != 0;
  }
  if (auto* query = extension<int()>("MPIX_Query_cuda_support")) return query() == 1;
  return -1;
}

// --- ranks that are lost ----------------------------------------------------------------------------------------------

// Asked in a job that goes on without them. What tells of it comes in during calls of MPI: the one that looks for messages
// is made for that alone.
int is_revoked(void* c) {
  static auto* const ask = extension<int(MPI_Comm, int*)>("MPIX_Comm_is_revoked");
  if (ask == nullptr) return 0;
  int answer = 0, from = 0;
  size_t bytes = 0;
  if (arrived(c, 0, &from, &bytes) == -2) return 1;
  return ask(static_cast<Channel*>(c)->comm, &answer) == MPI_SUCCESS && answer != 0;
}

int64_t pending(void* c) { return static_cast<Channel*>(c)->pending; }

#if defined(OPEN_MPI)
#define STRING2(x) #x
#define STRING(x) STRING2(x)
const char made_for[] =
    "Open MPI " STRING(OMPI_MAJOR_VERSION) "." STRING(OMPI_MINOR_VERSION) "." STRING(OMPI_RELEASE_VERSION);
#elif defined(MPICH_VERSION)
const char made_for[] = "MPICH " MPICH_VERSION;
#else
const char made_for[] = "an MPI of unknown family";
#endif

const ringdp_mpi_table table = {
    RINGDP_MPI_TABLE_VERSION,
    made_for,
    open_channel,
    close_channel,
    rank_of,
    size_of,
    max_tag_of,
    send,
    receive,
    test,
    arrived,
    lost,
    cancel,
    abort_job,
    error_text,
    takes_gpu_memory,
    is_revoked,
    pending,
};

}  // namespace

extern "C" __attribute__((visibility("default"))) const struct ringdp_mpi_table* ringdp_mpi_table(void) {
  return &table;
}
