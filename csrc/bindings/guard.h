#pragma once

#include <nanobind/nanobind.h>

namespace ringdp {

// The flight recorder and the watch of this process, as ringdp/watch.py uses them.
void bind_guard(nanobind::module_& m);

}  // namespace ringdp
