// Why all variants give the same bits, and what is refused at compile time because it would break that.
//
//  * An element's result depends on that element alone: no sum runs across vector lanes, so their number is irrelevant.
//  * +, * and / are correctly rounded by IEEE 754 on every CPU. No kernel multiplies and then adds; should one ever do
//    so, the pragmas below keep a compiler from fusing the two where the CPU has the instruction (gcc does by default).
//  * Which of two NaNs survives an addition depends on the order of operands, which compilers swap, and the sign of a
//    fresh NaN on the architecture: so every NaN result is replaced by the one quiet NaN of its dtype.
//  * Min and Max of floats, and the 16-bit conversions without hardware, are integer arithmetic.
//
// They hold in the default floating-point mode. A thread that flushes subnormals to zero gets bfloat16, float32 and
// float64 results flushed in every variant alike.
#pragma once

#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || \
    (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "ringdp's kernels must not be compiled with -ffast-math or a part of it: results would depend on the CPU"
#endif

#if defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0
#error "ringdp's kernels need float arithmetic without excess precision (x87 has it)"
#endif

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#else
#error "ringdp's kernels are written for gcc and clang"
#endif
