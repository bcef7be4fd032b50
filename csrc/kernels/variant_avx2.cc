// The kernels with AVX2 and the float16 conversions of F16C.
#include "kernels/simd.h"

#if RINGDP_X86_64
#include <immintrin.h>

RINGDP_TARGET("avx2,f16c")
#define RINGDP_VECTOR_BITS 256
#define RINGDP_HARDWARE_FLOAT16 1
#include "kernels/loops.h"
RINGDP_TARGET_END

namespace ringdp::kernels {
const Table avx2_table = kTable;
}
#endif
