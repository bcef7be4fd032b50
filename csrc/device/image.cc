// The image of a build without nvcc. Weak: that of image.S takes its place.
#include "device/image.h"

namespace ringdp {

extern "C" __attribute__((weak)) const KernelImage ringdp_kernel_image = {nullptr, nullptr};

}  // namespace ringdp
