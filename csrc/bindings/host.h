#pragma once

#include <nanobind/nanobind.h>

namespace ringdp {

void bind_host(nanobind::module_& m);

}  // namespace ringdp
