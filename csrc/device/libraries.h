// libcuda and libnccl, looked up once when they are first wanted. Neither is there on most machines; then a line says why.
#pragma once

#include <string>
#include <vector>

#include "device/cuda.h"
#include "device/nccl.h"

namespace ringdp {

// What came of the search for one library.
template <class Functions>
struct Found {
  const Functions* functions = nullptr;  // nullptr: there is none that can be used
  std::string path;                      // of the file that was loaded
  std::string missing;                   // why there is none
};

// The driver, initialised: RINGDP_CUDA_LIBRARY, or the system's. None where it has no device.
const Found<cuda::Driver>& cuda_driver();

// RINGDP_NCCL_LIBRARY; or the one that this process has loaded already, as PyTorch does; then the given files, in order;
// then the system's.
const Found<nccl::Functions>& nccl_library();
void look_for_nccl_in(std::vector<std::string> files);  // before the first nccl_library()

}  // namespace ringdp
