// CRC32C by the instructions of aarch64 (in ARMv8.0 an extension that every server has, and from ARMv8.1 on a part of it).
#include <array>
#include <cstring>

#include "kernels/crc32c.h"
#include "kernels/simd.h"

#if RINGDP_AARCH64
#if defined(__clang__)
RINGDP_TARGET("crc")
#else
RINGDP_TARGET("+crc")
#endif
#include <arm_acle.h>
#define RINGDP_CRC_WORD(crc, word) __crc32cd(static_cast<uint32_t>(crc), word)
#define RINGDP_CRC_BYTE(crc, byte) __crc32cb(crc, byte)
#include "kernels/crc32c_loop.h"

namespace ringdp::kernels {
uint32_t crc32c_arm(const void* data, size_t bytes, uint32_t before) { return by_instruction(data, bytes, before); }
}  // namespace ringdp::kernels
RINGDP_TARGET_END
#endif
