#pragma once

#include <nanobind/nanobind.h>

#include <vector>

#include "engine/engine.h"

namespace ringdp {

void bind_host(nanobind::module_& m);

// For ranks that are threads of this process: rank r lives on hosts[r].
std::vector<Neighbourhood> local_hosts(const std::vector<int>& hosts);

// Mail for each rank's neighbours; ranks: theirs, in the same order.
void add_local_mail(std::vector<Neighbourhood>& neighbourhoods, const std::vector<int>& ranks);

}  // namespace ringdp
