// The one place that knows instruction sets: which variants of the kernels this build contains, what each needs of
// the CPU, and which one runs.
//
// A variant is the same source, kernels/loops.h, compiled once more with other instructions allowed:
//
//   variant_portable.cc   nothing beyond the architecture's baseline, no intrinsics
//   variant_avx2.cc       x86-64 with AVX2 and F16C (Haswell, Zen and later)
//   variant_avx512.cc     x86-64 with AVX-512 F, BW, DQ, VL (Skylake-X, Zen 4 and later)
//   variant_neon.cc       aarch64, whose baseline has the 16-bit float conversions
//
// All give the same bits; kernels/exact.h says why.
#pragma once

#include "kernels/table.h"

#if defined(__x86_64__)
#define RINGDP_X86_64 1
#include <cpuid.h>
#elif defined(__aarch64__)
#define RINGDP_AARCH64 1
#endif

// RINGDP_TARGET("avx2,f16c"): what follows, up to the end of the file, may use these instructions. It must come after
// every standard header: an inline function of one of those, compiled with AVX-512 here, could be the copy that the
// linker keeps for the whole library, and would then kill the process on a smaller CPU.
#define RINGDP_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define RINGDP_TARGET(isa) RINGDP_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define RINGDP_TARGET_END RINGDP_PRAGMA(clang attribute pop)
#else
#define RINGDP_TARGET(isa) RINGDP_PRAGMA(GCC target(isa))
#define RINGDP_TARGET_END  // gcc instantiates templates at the end of the file: the target must still hold there
#endif

namespace ringdp::kernels {

extern const Table portable_table;
#if RINGDP_X86_64
extern const Table avx2_table, avx512_table;
#elif RINGDP_AARCH64
extern const Table neon_table;
#endif

#if RINGDP_X86_64
// __builtin_cpu_supports also asks whether the operating system saves the wide registers; that covers F16C too, for
// which older compilers have no name.
inline bool cpu_has_avx2_and_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __builtin_cpu_supports("avx2") && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
inline bool cpu_has_avx512() {
  return cpu_has_avx2_and_f16c() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif
inline bool always() { return true; }

struct Variant {
  const char* name;
  bool (*runs_here)();
  const Table* table;
};

// Best first: the first one that runs here is taken.
inline constexpr Variant kVariants[] = {
#if RINGDP_X86_64
    {"avx512", cpu_has_avx512, &avx512_table},
    {"avx2", cpu_has_avx2_and_f16c, &avx2_table},
#elif RINGDP_AARCH64
    {"neon", always, &neon_table},
#endif
    {"portable", always, &portable_table},
};

}  // namespace ringdp::kernels
