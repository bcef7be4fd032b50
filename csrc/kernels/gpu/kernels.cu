// All kernels for GPUs, as one module.
#include "kernels/gpu/elementwise.cu"
#include "kernels/gpu/int8.cu"
#include "kernels/gpu/pack.cu"
#include "kernels/gpu/replay.cu"
