// The submodule `ringdp._core.gpu`: what was found of CUDA and NCCL.
#pragma once

#include <nanobind/nanobind.h>

void bind_gpu(nanobind::module_& m);
