// The submodule `ringdp._core.gpu.kernels`: launches on raw addresses, for tests and measurements.
#pragma once

#include <nanobind/nanobind.h>

void bind_gpu_kernels(nanobind::module_& gpu);
