// The kernels for GPUs as this build has them: setup.py has nvcc compile them, and image.S takes the result in.
#pragma once

namespace ringdp {

extern "C" {
struct KernelImage {
  const void* machine_code;  // for the GPUs that were named; nullptr: there was no nvcc, or it was not wanted
  const char* portable;      // PTX: the driver compiles it for other GPUs, and where it is too old for the machine code
};
extern __attribute__((visibility("hidden"))) const KernelImage ringdp_kernel_image;
}

}  // namespace ringdp
