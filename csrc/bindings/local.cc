#include "bindings/local.h"

#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "agree/header.h"
#include "base/options.h"
#include "engine/local_ranks.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ringdp {

namespace {

// A bit that is flipped in the n-th message of all, counted from 0. Headers do not count, nor what is empty.
OnTheWay flip(int64_t message, uint64_t bit) {
  if (message < 0) return nullptr;
  return [message, bit, seen = int64_t{0}](int, int, std::byte* data, size_t bytes) mutable {
    uint16_t magic = 0;
    if (bytes == sizeof(Header)) std::memcpy(&magic, data, sizeof magic);
    if (bytes == 0 || magic == Header::kMagic || seen++ != message) return;
    const uint64_t at = bit % (8 * bytes);
    data[at / 8] ^= std::byte{1} << at % 8;
  };
}

}  // namespace

void bind_local(nb::module_& m) {
  m.def(
      "local_engines",
      [](int size, uint64_t delay_seed, const std::vector<int>& hosts, int64_t flipped, int64_t flipped_in_meetings,
         uint64_t bit, std::vector<uint32_t> generations) {
        const LocalFaults faults{flip(flipped, bit), flip(flipped_in_meetings, bit), std::move(generations)};
        return local_engines(options_from_environment(), size, delay_seed, hosts, faults);
      },
      "size"_a, "delay_seed"_a, "hosts"_a = std::vector<int>(), "flip"_a = -1, "flip_in_meetings"_a = -1, "bit"_a = 0,
      "generations"_a = std::vector<uint32_t>(),
      "flip, flip_in_meetings: the message (headers do not count; -1: none) in which this bit is flipped on its way, "
      "of "
      "those that carry data, and of those by which the ranks agree. generations: of each rank; empty: 0.");
  m.def(
      "add_local_process_set",
      [](int id, const std::vector<Engine*>& members, const std::vector<int>& hosts) {
        add_local_process_set(id, members, 0, hosts);
      },
      "id"_a, "members"_a, "hosts"_a = std::vector<int>());
}

}  // namespace ringdp
