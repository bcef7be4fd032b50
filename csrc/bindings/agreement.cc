#include "bindings/agreement.h"

#include <nanobind/stl/vector.h>

#include <vector>

#include "agree/rounds.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ringdp {

void bind_agreement(nb::module_& parent) {
  nb::module_ m = parent.def_submodule("agreement", "The protocol that orders named operations.");
  nb::class_<Rounds>(m, "Rounds")
      .def(nb::init<int, int, size_t>(), "rank"_a, "size"_a, "names_kept"_a = 1024)
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
      .def("fingerprint", &Rounds::fingerprint);
}

}  // namespace ringdp
