// Shared memory as Python sees it: how ranks find out with whom they share it (ringdp/sharing.py), and arrays in it.
#include "bindings/host.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <cstring>
#include <memory>
#include <string>

#include "shared/host.h"
#include "shared/mail.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ringdp {
namespace {

std::shared_ptr<Host> make_host(int rank, const std::string& kind) {
  return std::make_shared<Host>(rank, std::make_shared<Heap>(kind == "file" ? HeapKind::file : HeapKind::memfd));
}

nb::bytes card_of(const Host& host) { return nb::bytes(&host.heap().card(), sizeof(HeapCard)); }

std::string attach(Host& host, int rank, nb::bytes text) {
  HeapCard card;
  if (text.size() != sizeof card) return "another version of ringdp";
  std::memcpy(&card, text.c_str(), sizeof card);
  return host.attach(rank, card);
}

// An array of bytes that keeps the heap alive; None where memory is lacking.
nb::object allocate(Host& host, size_t bytes) {
  struct Block {
    std::shared_ptr<Heap> heap;
    void* data;
    ~Block() { heap->free(data); }
  };
  void* data = host.heap().allocate(bytes);
  if (data == nullptr) return nb::none();
  nb::capsule owner(new Block{host.shared_heap(), data}, [](void* p) noexcept { delete static_cast<Block*>(p); });
  const size_t shape[1] = {bytes};
  return nb::cast(nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>(data, 1, shape, owner));
}

}  // namespace

void bind_host(nb::module_& m) {
  m.attr("NOWHERE") = Heap::kNowhere;
  nb::class_<Host>(m, "Host", "This rank's heap, and those of the ranks that share memory with it.")
      .def(nb::new_(&make_host), "rank"_a, "kind"_a, "kind: memfd or file.")
      .def("card", &card_of, "What another rank needs to map this one's heap.")
      .def("attach", &attach, "rank"_a, "card"_a, "Map a rank's heap; why it cannot be, or an empty string.")
      .def(
          "unlink", [](Host& h) { h.heap().unlink(); }, "All have mapped the file: take its name away.")
      .def(
          "make_mail", [](Host& h, int members) { return Mail::make(h.heap(), members); }, "members"_a)
      .def(
          "free_mail", [](Host& h, uint64_t offset) { h.heap().free(h.heap().at(offset)); }, "offset"_a,
          "When no rank looks at it any more.")
      .def("allocate", &allocate, "bytes"_a, "Zeroed only where the memory is new.");
}

}  // namespace ringdp
