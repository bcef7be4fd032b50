// The submodule `ringdp._core.kernels`: the kernels on raw memory, for tests and `ringdp info`.
#pragma once

#include <nanobind/nanobind.h>

void bind_kernels(nanobind::module_& m);
