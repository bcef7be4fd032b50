// ringdp._core.schedules: the schedules and their simulator, for tests and for curious users.
#pragma once

#include <nanobind/nanobind.h>

namespace ringdp {

void bind_schedules(nanobind::module_& m);

}  // namespace ringdp
