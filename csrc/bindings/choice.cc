#include "bindings/choice.h"

#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "base/options.h"
#include "collectives/choice.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ringdp {
namespace {

std::string choose_by_name(int ranks, int hosts, int ranks_per_host, bool shared_memory, uint64_t bytes, int dtype,
                           const Profile& profile, const std::string& algorithm, bool two_levels) {
  const Placement at{ranks, hosts, ranks_per_host, shared_memory, two_levels};
  const auto forced = algorithm == "auto" ? std::nullopt : std::optional(algorithm_of(algorithm));
  return name_of(choose(at, bytes, static_cast<Dtype>(dtype), profile, forced));
}

std::vector<std::pair<std::string, double>> costs_at(int ranks, int hosts, int ranks_per_host, bool shared_memory,
                                                     uint64_t bytes, int dtype, const Profile& profile,
                                                     bool two_levels) {
  const Placement at{ranks, hosts, ranks_per_host, shared_memory, two_levels};
  return costs(at, bytes, static_cast<Dtype>(dtype), profile);
}

void bind_profile(nb::module_& m) {
  nb::class_<Link>(m, "Link", "Seconds of a small message, and bytes a second each way.")
      .def_rw("latency", &Link::latency)
      .def_rw("bandwidth", &Link::bandwidth);
  nb::class_<Profile>(m, "Profile", "Latencies and bandwidths that the cost functions go by: collectives/profile.h.")
      .def_rw("name", &Profile::name)
      .def_rw("overhead", &Profile::overhead)
      .def_rw("shared", &Profile::shared)
      .def_rw("host", &Profile::host)
      .def_rw("net", &Profile::net)
      .def_rw("reduce", &Profile::reduce)
      .def_prop_ro("digest", &digest_of, "Of all values, as its file would hold them.")
      .def("text", &text_of, "As a file: a line `key = value` each.");
  m.def(
      "profile",
      [](const std::string& given) { return profile_of(given.empty() ? options_from_environment().profile : given); },
      "name_or_path"_a = "", "A built-in profile, or one from a file; by default the one of RINGDP_PROFILE.");
  m.def("built_in_profiles", [] {
    std::vector<std::string> names;
    for (const Profile& profile : built_in_profiles()) names.push_back(profile.name);
    return names;
  });
}

}  // namespace

void bind_choice(nb::module_& m) {
  bind_profile(m);
  m.def(
      "algorithms",
      [] {
        nb::list rows;
        for (const AlgorithmRow& row : algorithm_table()) rows.append(nb::make_tuple(row.name, row.limitation));
        return rows;
      },
      "All of them: (name, limitation).");
  m.def("choose", &choose_by_name, "ranks"_a, "hosts"_a, "ranks_per_host"_a, "shared_memory"_a, "bytes"_a, "dtype"_a,
        "profile"_a, "algorithm"_a = "auto", "two_levels"_a = false,
        "The algorithm of an all-reduce, by name; algorithm: 'auto' or a name.");
  m.def("costs", &costs_at, "ranks"_a, "hosts"_a, "ranks_per_host"_a, "shared_memory"_a, "bytes"_a, "dtype"_a,
        "profile"_a, "two_levels"_a = false, "[(algorithm, predicted seconds), …]: all that can run there.");
}

}  // namespace ringdp
