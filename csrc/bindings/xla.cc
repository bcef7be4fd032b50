// What compiled programs of XLA call (ringdp/jax/primitives.py registers it), and the engine that they find.
#include "bindings/xla.h"

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/numbers.h"
#include "engine/current.h"
#include "xla/flat.h"
#include "xla/handlers.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ringdp {

namespace {

using Described = std::tuple<uint64_t, int, std::vector<uint64_t>>;  // address, dtype, shape

// The same as a compiled program does, for tensors that lie elsewhere.
void exchange_flat(Engine& engine, int kind, std::string name, int process_set, const std::vector<Described>& inputs,
                   const std::vector<uint64_t>& outputs, const std::string& layout, int op, double prescale,
                   double postscale, int root) {
  std::vector<xla::Tensor> from, to;
  for (const auto& [address, dtype, shape] : inputs) {
    from.push_back({dtype_of(dtype), static_cast<std::byte*>(pointer(address)), shape});
    to.push_back(from.back());
    to.back().data = static_cast<std::byte*>(pointer(outputs.at(to.size() - 1)));
  }
  Submission how;
  how.kind = static_cast<OpKind>(kind);
  how.name = std::move(name);
  how.process_set = process_set;
  how.op = operation_of(op, kReduceOps);
  how.prescale = prescale;
  how.postscale = postscale;
  how.root = root;
  nb::gil_scoped_release release;
  xla::exchange_flat(engine, how, from, to, layout, [] {
    nb::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
  });
}

}  // namespace

void bind_xla(nb::module_& m) {
  m.def("set_current", &set_current, "engine"_a.none(), "The engine that compiled programs find; None: there is none.");
  m.def(
      "xla_targets",
      [] {
        nb::dict targets;
        for (const xla::Target& target : xla::kTargets)
          targets[target.name] = nb::capsule(reinterpret_cast<void*>(target.handler));
        return targets;
      },
      "Capsules for jax.ffi.register_ffi_target, by name.");
  m.def("exchange_flat", &exchange_flat, "engine"_a, "kind"_a, "name"_a, "process_set"_a, "inputs"_a, "outputs"_a,
        "layout"_a, "op"_a, "prescale"_a, "postscale"_a, "root"_a,
        "Tensors in host memory, (address, dtype, shape) of each, exchanged as one into outputs at other addresses.");
}

}  // namespace ringdp
