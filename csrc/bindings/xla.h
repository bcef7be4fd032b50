#pragma once

#include <nanobind/nanobind.h>

namespace ringdp {
void bind_xla(nanobind::module_& m);
}  // namespace ringdp
