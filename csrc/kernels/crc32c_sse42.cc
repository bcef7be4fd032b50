// CRC32C by the instruction of SSE4.2 (Nehalem, Bulldozer and later).
#include <array>
#include <cstring>

#include "kernels/crc32c.h"
#include "kernels/simd.h"

#if RINGDP_X86_64
#include <immintrin.h>

#if defined(__clang__)
RINGDP_TARGET("sse4.2,crc32")
#else
RINGDP_TARGET("sse4.2")
#endif
#define RINGDP_CRC_WORD(crc, word) _mm_crc32_u64(crc, word)
#define RINGDP_CRC_BYTE(crc, byte) _mm_crc32_u8(crc, byte)
#include "kernels/crc32c_loop.h"

namespace ringdp::kernels {
uint32_t crc32c_sse42(const void* data, size_t bytes, uint32_t before) { return by_instruction(data, bytes, before); }
}  // namespace ringdp::kernels
RINGDP_TARGET_END
#endif
