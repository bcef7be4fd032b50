#pragma once

#include <nanobind/nanobind.h>

namespace ringdp {

// Ranks that are threads of this process, for tests.
void bind_local(nanobind::module_& m);

}  // namespace ringdp
