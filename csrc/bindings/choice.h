// Python's view of the choice of algorithms: profiles, costs, and what is chosen.
#pragma once

#include <nanobind/nanobind.h>

namespace ringdp {

void bind_choice(nanobind::module_& module);

}  // namespace ringdp
