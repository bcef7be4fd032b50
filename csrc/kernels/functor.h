// What is done to one element is written once. RINGDP_FUNCTOR marks it: nvcc compiles it for GPUs, too, and every other
// compiler sees an empty word.
#pragma once

#if defined(__CUDACC__)
#define RINGDP_FUNCTOR __host__ __device__
#else
#define RINGDP_FUNCTOR
#endif
