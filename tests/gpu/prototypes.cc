// Our words for what is called in libcuda and libnccl, compared with the real headers by the compiler. With -DWITH_CUDA,
// -DWITH_NCCL or both.
#include <cstddef>
#include <type_traits>

#include "device/cuda.h"
#include "device/nccl.h"

#ifdef WITH_CUDA
#define __CUDA_API_VERSION_INTERNAL  // with all versions of a function that libcuda has, by their full names
#include <cuda.h>
#endif
#ifdef WITH_NCCL
#include <nccl.h>
#endif

// A caller who takes one for the other passes the same bytes in the same registers.
template <class A, class B>
constexpr bool same_bytes() {
  if constexpr (std::is_pointer_v<A> || std::is_pointer_v<B>)
    return std::is_pointer_v<A> && std::is_pointer_v<B>;
  else if constexpr (std::is_floating_point_v<A> || std::is_floating_point_v<B>)
    return std::is_same_v<A, B>;
  else if constexpr (std::is_class_v<A> || std::is_class_v<B>)
    return std::is_class_v<A> && std::is_class_v<B> && sizeof(A) == sizeof(B) && alignof(A) == alignof(B);
  else
    return sizeof(A) == sizeof(B);
}

// What a pointer points at as well, where both say it and it is no struct.
template <class A, class B>
constexpr bool same_target() {
  using X = std::remove_cv_t<std::remove_pointer_t<A>>;
  using Y = std::remove_cv_t<std::remove_pointer_t<B>>;
  if constexpr (std::is_function_v<X> && std::is_function_v<Y>)
    return std::is_same_v<X, Y>;
  else if constexpr (!std::is_pointer_v<A> || std::is_void_v<X> || std::is_void_v<Y> || std::is_class_v<X> ||
                     std::is_class_v<Y>)
    return true;
  else
    return same_bytes<X, Y>();
}

template <class Ours, class Theirs>
struct Same : std::false_type {};
template <class R, class S, class... A, class... B>
struct Same<R (*)(A...), S (*)(B...)> {
  template <class... X>
  struct List {};
  template <class... X, class... Y>
  static constexpr bool each(List<X...>, List<Y...>) {
    return ((same_bytes<X, Y>() && same_target<X, Y>()) && ...);
  }
  static constexpr bool compare() {
    if constexpr (sizeof...(A) != sizeof...(B))
      return false;
    else
      return each(List<A...>(), List<B...>());
  }
  static constexpr bool value = same_bytes<R, S>() && compare();
};

#ifdef WITH_CUDA
#define CHECK_CUDA(name, symbol, parameters) \
  static_assert(Same<decltype(ringdp::cuda::Driver::name), decltype(&symbol)>::value, #symbol);
RINGDP_CUDA_FUNCTIONS(CHECK_CUDA)

namespace cuda = ringdp::cuda;
static_assert(sizeof(cuda::Uuid) == sizeof(CUuuid));
static_assert(cuda::kSuccess == CUDA_SUCCESS && cuda::kInvalidValue == CUDA_ERROR_INVALID_VALUE);
static_assert(cuda::kOutOfMemory == CUDA_ERROR_OUT_OF_MEMORY);
static_assert(cuda::kNoDevice == CUDA_ERROR_NO_DEVICE && cuda::kNotFound == CUDA_ERROR_NOT_FOUND);
static_assert(cuda::kNotReady == CUDA_ERROR_NOT_READY);
static_assert(cuda::kStreamNonBlocking == CU_STREAM_NON_BLOCKING &&
              cuda::kEventDisableTiming == CU_EVENT_DISABLE_TIMING);
static_assert(cuda::kHostPortable == CU_MEMHOSTALLOC_PORTABLE);
static_assert(cuda::kPointerMemoryType == CU_POINTER_ATTRIBUTE_MEMORY_TYPE);
static_assert(cuda::kPointerDeviceOrdinal == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL);
static_assert(cuda::kCaptureNone == CU_STREAM_CAPTURE_STATUS_NONE &&
              cuda::kCaptureActive == CU_STREAM_CAPTURE_STATUS_ACTIVE);
static_assert(cuda::kCaptureRelaxed == CU_STREAM_CAPTURE_MODE_RELAXED);
static_assert(cuda::kNoDestructorSync == CU_USER_OBJECT_NO_DESTRUCTOR_SYNC);
static_assert(cuda::kMoveReferences == CU_GRAPH_USER_OBJECT_MOVE);
static_assert(cuda::kMemoryTypeHost == CU_MEMORYTYPE_HOST && cuda::kMemoryTypeDevice == CU_MEMORYTYPE_DEVICE);
#endif

#ifdef WITH_NCCL
#define CHECK_NCCL(name, symbol, parameters) \
  static_assert(Same<decltype(ringdp::nccl::Functions::name), decltype(&symbol)>::value, #symbol);
RINGDP_NCCL_FUNCTIONS(CHECK_NCCL)
RINGDP_NCCL_TEXTS(CHECK_NCCL)

namespace nccl = ringdp::nccl;
static_assert(sizeof(nccl::UniqueId) == sizeof(ncclUniqueId));
static_assert(nccl::kSuccess == ncclSuccess && nccl::kInProgress == ncclInProgress);
static_assert(nccl::kInt8 == ncclInt8 && nccl::kUint8 == ncclUint8 && nccl::kInt32 == ncclInt32);
static_assert(nccl::kInt64 == ncclInt64 && nccl::kFloat16 == ncclFloat16 && nccl::kFloat32 == ncclFloat32);
static_assert(nccl::kFloat64 == ncclFloat64 && nccl::kBfloat16 == ncclBfloat16);
static_assert(nccl::kSum == ncclSum && nccl::kProduct == ncclProd && nccl::kMax == ncclMax && nccl::kMin == ncclMin);
static_assert(nccl::kAverage == ncclAvg && nccl::kScalarOnHost == ncclScalarHostImmediate);
static_assert(offsetof(nccl::Config, size) == offsetof(ncclConfig_t, size));
static_assert(offsetof(nccl::Config, magic) == offsetof(ncclConfig_t, magic));
static_assert(offsetof(nccl::Config, version) == offsetof(ncclConfig_t, version));
static_assert(offsetof(nccl::Config, blocking) == offsetof(ncclConfig_t, blocking));
static_assert(INT_MIN == NCCL_CONFIG_UNDEF_INT);

#endif

// Exit code 0: the magic number, which stands in the initialiser alone, is the same.
int main() {
#ifdef WITH_NCCL
  const ncclConfig_t theirs = NCCL_CONFIG_INITIALIZER;
  return nccl::Config().magic == theirs.magic ? 0 : 1;
#endif
}
