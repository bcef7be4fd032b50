// The functions of NCCL that ringdp calls, in its own words; libnccl is looked up at run time (device/libraries.h).
//
// tests/gpu/prototypes.cc compares each line with the real nccl.h where that is installed.
#pragma once

#include <climits>
#include <cstddef>
#include <cstdint>

#include "device/cuda.h"

namespace ringdp::nccl {

using Result = int;     // ncclResult_t
using DataType = int;   // ncclDataType_t
using Operation = int;  // ncclRedOp_t
using Communicator = struct CommunicatorOfNccl*;

constexpr Result kSuccess = 0, kInProgress = 7;
constexpr DataType kInt8 = 0, kUint8 = 1, kInt32 = 2, kInt64 = 4, kFloat16 = 6, kFloat32 = 7, kFloat64 = 8,
                   kBfloat16 = 9;
constexpr Operation kSum = 0, kProduct = 1, kMax = 2, kMin = 3, kAverage = 4;
constexpr int kScalarOnHost = 1;  // ncclScalarHostImmediate: where the factor of an operation lies

struct UniqueId {
  char bytes[128];
};

// The first fields of ncclConfig_t: NCCL reads as many bytes as `size` says, since 2.14.
struct Config {
  size_t size = sizeof(Config);
  unsigned magic = 0xcafebeef;
  unsigned version = 21400;  // of NCCL, whose fields these are: 2.14.0
  int blocking = INT_MIN;    // not set
};

// FUNCTION(name, symbol in libnccl, parameters)
#define RINGDP_NCCL_FUNCTIONS(FUNCTION)                                                                               \
  FUNCTION(get_version, ncclGetVersion, (int* version))                                                               \
  FUNCTION(get_unique_id, ncclGetUniqueId, (UniqueId * id))                                                           \
  FUNCTION(create, ncclCommInitRankConfig,                                                                            \
           (Communicator * communicator, int ranks, UniqueId id, int rank, Config* config))                           \
  FUNCTION(finalize, ncclCommFinalize, (Communicator communicator))                                                   \
  FUNCTION(destroy, ncclCommDestroy, (Communicator communicator))                                                     \
  FUNCTION(abort, ncclCommAbort, (Communicator communicator))                                                         \
  FUNCTION(async_error, ncclCommGetAsyncError, (Communicator communicator, Result * error))                           \
  FUNCTION(all_reduce, ncclAllReduce,                                                                                 \
           (const void* from, void* to, size_t count, DataType type, Operation operation, Communicator communicator,  \
            cuda::Stream stream))                                                                                     \
  FUNCTION(reduce_scatter, ncclReduceScatter,                                                                         \
           (const void* from, void* to, size_t each, DataType type, Operation operation, Communicator communicator,   \
            cuda::Stream stream))                                                                                     \
  FUNCTION(all_gather, ncclAllGather,                                                                                 \
           (const void* from, void* to, size_t each, DataType type, Communicator communicator, cuda::Stream stream))  \
  FUNCTION(broadcast, ncclBroadcast,                                                                                  \
           (const void* from, void* to, size_t count, DataType type, int root, Communicator communicator,             \
            cuda::Stream stream))                                                                                     \
  FUNCTION(send, ncclSend,                                                                                            \
           (const void* from, size_t count, DataType type, int peer, Communicator communicator, cuda::Stream stream)) \
  FUNCTION(receive, ncclRecv,                                                                                         \
           (void* to, size_t count, DataType type, int peer, Communicator communicator, cuda::Stream stream))         \
  FUNCTION(group_start, ncclGroupStart, ())                                                                           \
  FUNCTION(group_end, ncclGroupEnd, ())                                                                               \
  FUNCTION(create_scaled_sum, ncclRedOpCreatePreMulSum,                                                               \
           (Operation * operation, void* factor, DataType type, int where, Communicator communicator))                \
  FUNCTION(destroy_operation, ncclRedOpDestroy, (Operation operation, Communicator communicator))

// These do not return a status.
#define RINGDP_NCCL_TEXTS(FUNCTION)                           \
  FUNCTION(text_of_error, ncclGetErrorString, (Result error)) \
  FUNCTION(last_error, ncclGetLastError, (Communicator communicator))

// What was found in libnccl.
struct Functions {
#define RINGDP_NCCL_FIELD(name, symbol, parameters) Result(*name) parameters = nullptr;
  RINGDP_NCCL_FUNCTIONS(RINGDP_NCCL_FIELD)
#undef RINGDP_NCCL_FIELD
#define RINGDP_NCCL_FIELD(name, symbol, parameters) const char*(*name)parameters = nullptr;
  RINGDP_NCCL_TEXTS(RINGDP_NCCL_FIELD)
#undef RINGDP_NCCL_FIELD
};

}  // namespace ringdp::nccl
