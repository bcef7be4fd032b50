// What is done to elements: reduce, scale, finish and cast. Every variant (portable, AVX2, AVX-512, NEON)
// gives the same bits; which one runs is chosen once, at run time, in kernels/simd.h.
//
// Semantics (docs/reductions.md has the table, tests/unit/test_kernels.py checks it row by row):
//  * Floats of 8 and 16 bits are widened to float32, combined, and rounded once to nearest even.
//  * Min and Max propagate NaN.
//  * Integers wrap. bool: Sum and Max are or, Min and Product are and.
//  * Average is the sum, then a division by the number of ranks: floats divide (narrow ones in float32),
//    integers use floor division. bool has no average. float16 and those of 8 bits are different (overflow): their *input* is scaled by
//    1/N before the first hop and nothing is divided at the end; the caller does that with scale().
#pragma once

#include <cstddef>

#include "base/dtype.h"

namespace ringdp::kernels {

// to[i] = a[i] op b[i]; `average` adds like `sum`. `to` may be `a` or `b`, otherwise no overlap.
void reduce(Dtype dtype, ReduceOp op, void* to, const void* a, const void* b, size_t count);

// to[i] = from[i] * factor. Floats multiply in their compute type (float32 for 8 and 16 bits and float32, float64 for
// float64), the factor rounded to it first; integers go through float64, truncate towards zero and saturate (NaN
// gives 0); bool is refused by the caller.
// `to` may be `from`.
void scale(Dtype dtype, void* to, const void* from, double factor, size_t count);

// to[i] = from[i] / ranks: the end of an average (see above). `to` may be `from`.
void divide(Dtype dtype, void* to, const void* from, int ranks, size_t count);

// to[i] = from[i] in the other format: of `narrow` (float16, bfloat16, those of 8 bits) and `wide` (float32, float64). float64 goes through
// float32, and is rounded to nearest even twice, as torch does it; what is too large becomes infinite, any NaN the
// canonical one. Widening is exact. No overlap.
void narrow(Dtype narrow, void* to, Dtype wide, const void* from, size_t count);
void widen(Dtype wide, void* to, Dtype narrow, const void* from, size_t count);

// The first element that is infinite or NaN; `count` if there is none (integers have none). One pass, at the speed of the
// memory.
size_t find_not_finite(Dtype dtype, const void* from, size_t count);

// Which variant runs on this CPU ("avx512", "avx2", "neon", "portable"), and a way for tests to force one.
const char* variant();
bool force_variant(const char* name);  // false when this CPU or build lacks it; "" returns to automatic choice

}  // namespace ringdp::kernels
