#include "kernel.h"
extern "C" const StandinKernel* standin_kernels(size_t* count) {
  *count = 0;
  return nullptr;
}
