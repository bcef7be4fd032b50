#include "bindings/agreement.h"

#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <utility>
#include <vector>

#include "agree/explore.h"
#include "agree/header.h"
#include "agree/rounds.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ringdp {

namespace {

void bind_rounds(nb::module_& m) {
  nb::class_<Rounds>(m, "Rounds")
      .def(nb::init<int, int, size_t, size_t>(), "rank"_a, "size"_a, "names_kept"_a = 1024, "names_at_once"_a = 32)
      .def(nb::init<const Rounds&>(), "other"_a)
      .def("submit", &Rounds::submit, "name"_a, "signature"_a, "token"_a)
      .def("leave", &Rounds::leave)
      .def("wants_to_enter", &Rounds::wants_to_enter)
      .def("between_rounds", &Rounds::between_rounds)
      .def("pending", &Rounds::pending)
      .def("closed", &Rounds::closed)
      .def("left_rank", &Rounds::left_rank)
      .def("words", &Rounds::words)
      .def("contribution", &Rounds::contribution)
      .def("merge",
           [](const Rounds& r, Rounds::Words mine, const Rounds::Words& theirs) {
             r.merge(mine, theirs);
             return mine;
           })
      .def("complete",
           [](Rounds& r, const Rounds::Words& merged) {
             nb::list out;
             const char* const kinds[] = {"run", "mismatch", "peer_left"};
             for (const Rounds::Decision& d : r.complete(merged))
               out.append(nb::make_tuple(kinds[d.kind], d.token, d.sequence));
             return out;
           })
      .def("shared_state", &Rounds::shared_state)
      .def("fingerprint", &Rounds::fingerprint);
}

void bind_explore(nb::module_& m) {
  using explore::Broken;
  using explore::Outcome;
  nb::enum_<Broken>(m, "Broken", "A rule of the protocol taken out.")
      .value("nothing", Broken::nothing)
      .value("forgets_changes_inside", Broken::forgets_changes_inside)
      .value("submission_order", Broken::submission_order)
      .value("keeps_reused_id", Broken::keeps_reused_id)
      .value("never_compares", Broken::never_compares)
      .value("leaves_in_silence", Broken::leaves_in_silence);
  nb::class_<Outcome>(m, "Outcome")
      .def_ro("states", &Outcome::states)
      .def_ro("ends", &Outcome::ends)
      .def_ro("runs", &Outcome::runs)
      .def_ro("mismatches", &Outcome::mismatches)
      .def_ro("peers_left", &Outcome::peers_left)
      .def_ro("violation", &Outcome::violation)
      .def_ro("path", &Outcome::path);
  m.def(
      "explore",
      [](int ranks, int names, int times, uint64_t names_kept, uint64_t names_at_once,
         std::vector<std::pair<int, int>> different, std::vector<int> leave_early, bool hears_neighbour_only,
         bool every_order, Broken broken, uint64_t most_states) {
        nb::gil_scoped_release release;
        return explore::explore({ranks, names, times, names_kept, names_at_once, std::move(different),
                                 std::move(leave_early), hears_neighbour_only, every_order, broken},
                                most_states);
      },
      nb::kw_only(), "ranks"_a = 3, "names"_a = 3, "times"_a = 1, "names_kept"_a = 1024, "names_at_once"_a = 32,
      "different"_a = std::vector<std::pair<int, int>>(), "leave_early"_a = std::vector<int>(),
      "hears_neighbour_only"_a = false, "every_order"_a = false, "broken"_a = Broken::nothing,
      "most_states"_a = 10'000'000, "Every state that the protocol can come to; see csrc/agree/explore.h.");
}

void bind_header(nb::module_& m) {
  nb::class_<Header>(m, "Header", "The identity of an operation, 64 bytes.")
      .def(nb::init<>())
      .def_rw("magic", &Header::magic)
      .def_rw("version", &Header::version)
      .def_rw("generation", &Header::generation)
      .def_rw("process_set", &Header::process_set)
      .def_rw("root", &Header::root)
      .def_rw("digest", &Header::digest)
      .def_rw("sequence", &Header::sequence)
      .def_rw("count", &Header::count)
      .def_rw("scale", &Header::scale)
      .def_rw("bucket", &Header::bucket)
      .def_rw("part", &Header::part)
      .def_rw("kind", &Header::kind)
      .def_rw("dtype", &Header::dtype)
      .def_rw("op", &Header::op)
      .def_rw("flags", &Header::flags)
      .def("poisoned", &Header::poisoned)
      .def("wire", [](const Header& h) { return nb::bytes(&h, sizeof h); }, "The bytes on the wire.");
  m.def("difference", &difference, "mine"_a, "theirs"_a, "their_rank"_a);
}

}  // namespace

void bind_agreement(nb::module_& parent) {
  nb::module_ m = parent.def_submodule("agreement", "The protocol that orders named operations, and headers.");
  bind_rounds(m);
  bind_explore(m);
  bind_header(m);
}

}  // namespace ringdp
