// The functions of the CUDA driver that ringdp calls, in its own words: no header of NVIDIA's is needed to build it, and
// libcuda is looked up at run time, so one binary serves machines with and without a GPU.
//
// tests/gpu/prototypes.cc compares each line with the real cuda.h where that is installed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ringdp::cuda {

using Result = int;                  // CUresult
using DeviceHandle = int;            // CUdevice
using Address = unsigned long long;  // CUdeviceptr: of memory on a GPU
using Context = struct ContextOfDriver*;
using Stream = struct StreamOfDriver*;
using Event = struct EventOfDriver*;
using Module = struct ModuleOfDriver*;
using Function = struct FunctionOfDriver*;
using Graph = struct GraphOfDriver*;
using GraphNode = struct NodeOfDriver*;
using UserObject = struct UserObjectOfDriver*;

struct Uuid {
  char bytes[16];
};

constexpr Result kSuccess = 0, kInvalidValue = 1, kOutOfMemory = 2, kNoDevice = 100, kNotFound = 500, kNotReady = 600;
constexpr unsigned kStreamNonBlocking = 1, kEventDisableTiming = 2;
constexpr unsigned kHostPortable = 1;
constexpr int kPointerMemoryType = 2, kPointerDeviceOrdinal = 9;
constexpr unsigned kMemoryTypeHost = 1, kMemoryTypeDevice = 2;
constexpr int kCaptureNone = 0, kCaptureActive = 1;  // of a stream
constexpr int kCaptureRelaxed = 2;                   // of a thread: what is not captured may be asked meanwhile
constexpr unsigned kNoDestructorSync = 1,
                   kMoveReferences = 1;  // of user objects: what they must be, and who holds them

// The streams that mean a default one (CUstream): what frameworks call 0 or 1 is the legacy default stream.
constexpr uintptr_t kLegacyStream = 1, kPerThreadStream = 2;

// FUNCTION(name, symbol in libcuda, parameters)
#define RINGDP_CUDA_FUNCTIONS(FUNCTION)                                                                               \
  FUNCTION(init, cuInit, (unsigned flags))                                                                            \
  FUNCTION(driver_version, cuDriverGetVersion, (int* version))                                                        \
  FUNCTION(name_of_error, cuGetErrorName, (Result error, const char** name))                                          \
  FUNCTION(text_of_error, cuGetErrorString, (Result error, const char** text))                                        \
  FUNCTION(device_count, cuDeviceGetCount, (int* count))                                                              \
  FUNCTION(device_get, cuDeviceGet, (DeviceHandle * device, int ordinal))                                             \
  FUNCTION(device_name, cuDeviceGetName, (char* name, int length, DeviceHandle device))                               \
  FUNCTION(device_uuid, cuDeviceGetUuid_v2, (Uuid * uuid, DeviceHandle device))                                       \
  FUNCTION(primary_retain, cuDevicePrimaryCtxRetain, (Context * context, DeviceHandle device))                        \
  FUNCTION(context_push, cuCtxPushCurrent_v2, (Context context))                                                      \
  FUNCTION(context_pop, cuCtxPopCurrent_v2, (Context * context))                                                      \
  FUNCTION(stream_priorities, cuCtxGetStreamPriorityRange, (int* least, int* greatest))                               \
  FUNCTION(memory_info, cuMemGetInfo_v2, (size_t* free, size_t* total))                                               \
  FUNCTION(memory_allocate, cuMemAlloc_v2, (Address * address, size_t bytes))                                         \
  FUNCTION(memory_free, cuMemFree_v2, (Address address))                                                              \
  FUNCTION(host_allocate, cuMemHostAlloc, (void** memory, size_t bytes, unsigned flags))                              \
  FUNCTION(pointer_attribute, cuPointerGetAttribute, (void* value, int attribute, Address address))                   \
  FUNCTION(copy_to_device, cuMemcpyHtoDAsync_v2, (Address to, const void* from, size_t bytes, Stream stream))         \
  FUNCTION(copy_to_host, cuMemcpyDtoHAsync_v2, (void* to, Address from, size_t bytes, Stream stream))                 \
  FUNCTION(copy_on_device, cuMemcpyDtoDAsync_v2, (Address to, Address from, size_t bytes, Stream stream))             \
  FUNCTION(stream_create, cuStreamCreateWithPriority, (Stream * stream, unsigned flags, int priority))                \
  FUNCTION(stream_wait, cuStreamWaitEvent, (Stream stream, Event event, unsigned flags))                              \
  FUNCTION(event_create, cuEventCreate, (Event * event, unsigned flags))                                              \
  FUNCTION(event_record, cuEventRecord, (Event event, Stream stream))                                                 \
  FUNCTION(event_query, cuEventQuery, (Event event))                                                                  \
  FUNCTION(is_capturing, cuStreamIsCapturing, (Stream stream, int* status))                                           \
  FUNCTION(capture_info, cuStreamGetCaptureInfo_v2,                                                                   \
           (Stream stream, int* status, uint64_t* id, Graph* graph, const GraphNode** dependencies, size_t* count))   \
  FUNCTION(exchange_capture_mode, cuThreadExchangeStreamCaptureMode, (int* mode))                                     \
  FUNCTION(object_create, cuUserObjectCreate,                                                                         \
           (UserObject * object, void* given, void (*destroy)(void*), unsigned references, unsigned flags))           \
  FUNCTION(graph_retain, cuGraphRetainUserObject, (Graph graph, UserObject object, unsigned count, unsigned flags))   \
  FUNCTION(module_load, cuModuleLoadData, (Module * module, const void* image))                                       \
  FUNCTION(module_function, cuModuleGetFunction, (Function * function, Module module, const char* name))              \
  FUNCTION(launch, cuLaunchKernel,                                                                                    \
           (Function function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, \
            unsigned block_z, unsigned shared_bytes, Stream stream, void** parameters, void** extra))

// What was found in libcuda.
struct Driver {
#define RINGDP_CUDA_FIELD(name, symbol, parameters) Result(*name) parameters = nullptr;
  RINGDP_CUDA_FUNCTIONS(RINGDP_CUDA_FIELD)
#undef RINGDP_CUDA_FIELD
};

}  // namespace ringdp::cuda
