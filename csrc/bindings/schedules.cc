#include "bindings/schedules.h"

#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "base/error.h"
#include "collectives/describe.h"
#include "collectives/sweep.h"
#include "collectives/timing.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ringdp {
namespace {

using simulate::Case;
using simulate::Collective;
using simulate::Sharing;
using ReleaseGil = nb::call_guard<nb::gil_scoped_release>;

void bind_enums(nb::module_& m) {
  nb::enum_<Kind>(m, "Kind")
      .value("send", Kind::send)
      .value("receive", Kind::receive)
      .value("reduce", Kind::reduce)
      .value("copy", Kind::copy)
      .value("finish", Kind::finish)
      .value("signal", Kind::signal)
      .value("await_", Kind::await);
  nb::enum_<Place>(m, "Place")
      .value("input", Place::input)
      .value("output", Place::output)
      .value("scratch", Place::scratch)
      .value("area", Place::area);
  nb::enum_<Collective>(m, "Collective")
      .value("allreduce", Collective::allreduce)
      .value("reduce_scatter", Collective::reduce_scatter)
      .value("allgather", Collective::allgather)
      .value("broadcast", Collective::broadcast)
      .value("alltoall", Collective::alltoall);
  nb::enum_<Sharing>(m, "Sharing", "How an all-reduce uses the memory that the ranks of a host share.")
      .value("none", Sharing::none)
      .value("direct", Sharing::direct)
      .value("staged", Sharing::staged)
      .value("two_level_direct", Sharing::two_level_direct)
      .value("two_level_staged", Sharing::two_level_staged)
      .value("two_level_messages", Sharing::two_level_messages)
      .value("two_level_mixed", Sharing::two_level_mixed);
  nb::enum_<Half>(m, "Half", "Of an all-reduce in place.")
      .value("both", Half::both)
      .value("reduce_scatter", Half::reduce_scatter)
      .value("all_gather", Half::all_gather);
  nb::enum_<Algorithm> algorithms(m, "Algorithm");
  for (const AlgorithmRow& row : algorithm_table())
    if (row.schedule) algorithms.value(row.name, row.algorithm);
}

void bind_data(nb::module_& m) {
  nb::class_<Region>(m, "Region", "Where a region begins: a place and an offset in elements.")
      .def_rw("place", &Region::place)
      .def_rw("owner", &Region::owner, "The rank whose output or area it is; -1: its own.")
      .def_rw("offset", &Region::offset);
  nb::class_<Move>(m, "Move", "One thing done to one segment; after: indices of earlier moves, -1 for none.")
      .def_rw("kind", &Move::kind)
      .def_rw("prescale", &Move::prescale)
      .def_rw("line", &Move::line)
      .def_rw("peer", &Move::peer)
      .def_rw("count", &Move::count)
      .def_rw("to", &Move::to)
      .def_rw("from_", &Move::from)
      .def_rw("with_", &Move::with)
      .def_rw("after", &Move::after)
      .def("__repr__", [](const Move& move) { return describe(move); });
  nb::class_<Schedule>(m, "Schedule", "The moves of one rank. `moves` gives and takes copies.")
      .def_prop_rw(
          "moves", [](const Schedule& s) { return s.moves; },
          [](Schedule& s, std::vector<Move> moves) { s.moves = std::move(moves); })
      .def_rw("scratch", &Schedule::scratch)
      .def_rw("area", &Schedule::area)
      .def("__len__", [](const Schedule& s) { return s.moves.size(); });
}

Case make_case(Collective collective, int ranks, std::vector<uint64_t> counts, uint64_t segment, int depth,
               bool prescale, bool finish, bool in_place, int root, Algorithm algorithm, Sharing sharing,
               std::vector<int> host_of, Half half) {
  return {collective, ranks, std::move(counts), {segment, depth}, {prescale, finish},
          in_place,   root,  algorithm,         sharing,          std::move(host_of),
          half};
}

uint64_t sweep(Collective collective, Algorithm algorithm, int ranks, uint64_t max_count,
               const std::vector<uint64_t>& segments, const std::vector<int>& depths, uint64_t seed, Sharing sharing,
               std::vector<int> host_of, Half half) {
  const Case like =
      make_case(collective, ranks, {}, 1, 1, false, false, false, 0, algorithm, sharing, std::move(host_of), half);
  return simulate::sweep(like, max_count, segments, depths, seed);
}

void bind_simulator(nb::module_& m) {
  nb::class_<Case>(m, "Case", "A collective with all its parameters; see collectives/cases.h for `counts`.")
      .def_ro("ranks", &Case::ranks)
      .def_ro("in_place", &Case::in_place)
      .def_ro("host_of", &Case::host_of)
      .def("__repr__", [](const Case& c) { return simulate::describe(c); });
  m.def("case", &make_case, "collective"_a, "ranks"_a, "counts"_a, "segment"_a, "depth"_a = 8, nb::kw_only(),
        "prescale"_a = false, "finish"_a = false, "in_place"_a = false, "root"_a = 0, "algorithm"_a = Algorithm::ring,
        "sharing"_a = Sharing::none, "host_of"_a = std::vector<int>(), "half"_a = Half::both);
  m.def(
      "own_chunk",
      [](const Case& c, int rank) {
        const Chunk own = simulate::own_chunk(c, rank);
        return nb::make_tuple(own.begin, own.end);
      },
      "case"_a, "rank"_a, "(begin, end) of the elements that are the rank's own between the halves.");
  m.def("schedules_of", &simulate::schedules_of, "case"_a, "The schedules of all ranks, by rank.");
  m.def("check", &simulate::check, "case"_a, "schedules"_a, "first_seed"_a = 0, "seeds"_a = 1, ReleaseGil(),
        "Simulates the schedules once for each seed; raises an error that names rank and move.");
  m.def("sweep", &sweep, "collective"_a, "algorithm"_a, "ranks"_a, "max_count"_a, "segments"_a, "depths"_a,
        "seed"_a = 0, nb::kw_only(), "sharing"_a = Sharing::none, "host_of"_a = std::vector<int>(),
        "half"_a = Half::both, ReleaseGil(),
        "Simulates all cases of a collective on so many ranks once; returns how many there were.");
  m.def(
      "sums",
      [](const Case& c, int rank, uint64_t seed) {
        return simulate::Simulation(simulate::schedules_of(c), simulate::problem_of(c)).sums(rank, seed);
      },
      "case"_a, "rank"_a, "seed"_a = 0, "How each element of the rank's output was added up, the numbers being ranks.");
}

void bind_timing(nb::module_& m) {
  using timing::Cluster;
  using timing::Link;
  using timing::Times;
  nb::class_<Link>(m, "Link", "Latency in seconds, bandwidth in bytes a second each way.")
      .def(
          "__init__", [](Link* link, double latency, double bandwidth) { new (link) Link{latency, bandwidth}; },
          "latency"_a, "bandwidth"_a)
      .def_rw("latency", &Link::latency)
      .def_rw("bandwidth", &Link::bandwidth);
  nb::class_<Cluster>(m, "Cluster", "What virtual time knows of a cluster; see collectives/timing.h.")
      .def(nb::init<>())
      .def_rw("ranks_per_host", &Cluster::ranks_per_host)
      .def_rw("inside", &Cluster::inside)
      .def_rw("between", &Cluster::between)
      .def_rw("inside_by_rank", &Cluster::inside_by_rank)
      .def_rw("arithmetic", &Cluster::arithmetic)
      .def_rw("per_message", &Cluster::per_message)
      .def_rw("eager", &Cluster::eager)
      .def_rw("cores", &Cluster::cores)
      .def_rw("jitter", &Cluster::jitter)
      .def_rw("seed", &Cluster::seed);
  nb::class_<Times>(m, "Times", "When each executed rank was finished, and what they sent.")
      .def_ro("finished", &Times::finished)
      .def_ro("messages", &Times::messages)
      .def_ro("bytes_between", &Times::bytes_between);
  m.def(
      "virtual_time",
      [](const Case& c, double element_bytes, const Cluster& cluster, int period, const std::vector<double>& ready) {
        if (c.sharing != Sharing::none) fail(ErrorKind::usage, "virtual time knows messages, not shared memory");
        const auto schedule = [&](int rank) { return simulate::schedule_of(c, rank); };
        return timing::execute(c.ranks, period > 0 ? period : c.ranks, schedule, element_bytes, cluster, ready);
      },
      "case"_a, "element_bytes"_a, "cluster"_a, "period"_a = 0, "ready"_a = std::vector<double>(), ReleaseGil(),
      "Executes a case in virtual time. period: so many ranks stand for all (0: all are executed).");
}

}  // namespace

void bind_schedules(nb::module_& m) {
  nb::module_ sub = m.def_submodule("schedules", "Schedules as data, and their simulator.");
  bind_enums(sub);
  bind_data(sub);
  bind_simulator(sub);
  bind_timing(sub);
}

}  // namespace ringdp
