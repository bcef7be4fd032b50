#pragma once

#include <nanobind/nanobind.h>

namespace ringdp {

// The protocol of the rounds, for tests that explore its states.
void bind_agreement(nanobind::module_& m);

}  // namespace ringdp
