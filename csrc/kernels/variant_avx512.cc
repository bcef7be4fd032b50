// The kernels with AVX-512.
#include "kernels/simd.h"

#if RINGDP_X86_64
#include <immintrin.h>

RINGDP_TARGET("avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")
#define RINGDP_VECTOR_BITS 512
#define RINGDP_HARDWARE_FLOAT16 1
#include "kernels/loops.h"
RINGDP_TARGET_END

namespace ringdp::kernels {
const Table avx512_table = kTable;
}
#endif
