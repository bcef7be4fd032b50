#include "bindings/local.h"

#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <vector>

#include "base/options.h"
#include "engine/local_ranks.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ringdp {

void bind_local(nb::module_& m) {
  m.def(
      "local_engines",
      [](int size, uint64_t delay_seed, const std::vector<int>& hosts) {
        return local_engines(options_from_environment(), size, delay_seed, hosts);
      },
      "size"_a, "delay_seed"_a, "hosts"_a = std::vector<int>());
  m.def(
      "add_local_process_set",
      [](int id, const std::vector<Engine*>& members, const std::vector<int>& hosts) {
        add_local_process_set(id, members, 0, hosts);
      },
      "id"_a, "members"_a, "hosts"_a = std::vector<int>());
}

}  // namespace ringdp
