// The kernels on aarch64, with its float16 conversions; NEON itself is in the baseline there.
#include "kernels/simd.h"

#if RINGDP_AARCH64
#include <arm_neon.h>
#define RINGDP_VECTOR_BITS 128
#define RINGDP_HARDWARE_FLOAT16 1
#include "kernels/loops.h"

namespace ringdp::kernels {
const Table neon_table = kTable;
}
#endif
