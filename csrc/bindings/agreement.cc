#include "bindings/agreement.h"

#include <nanobind/stl/string.h>

#include <string>

#include "agree/header.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ringdp {

namespace {

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
  nb::module_ m = parent.def_submodule("agreement", "The identity of operations.");
  bind_header(m);
}

}  // namespace ringdp
