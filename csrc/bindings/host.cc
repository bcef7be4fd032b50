// Shared memory as Python sees it: how ranks find out with whom they share it (ringdp/sharing.py), and arrays in it.
#include "bindings/host.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <cstring>
#include <map>
#include <memory>
#include <numeric>
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

// This rank's part of the mail of so many members: its offset in the heap, or nothing where memory is lacking.
uint64_t make_mail(Host& host, int members) {
  Heap& heap = host.heap();
  const size_t bytes = Mail::part_bytes(members);
  auto* part = static_cast<std::byte*>(heap.allocate(bytes));
  if (part == nullptr) return Heap::kNowhere;
  Mail::prepare(part, members, heap.card().token[0] ^ heap.card().token[1]);
  return heap.offset_of(part, bytes);
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
      .def("make_mail", &make_mail, "members"_a)
      .def(
          "free_mail", [](Host& h, uint64_t offset) { h.heap().free(h.heap().at(offset)); }, "offset"_a,
          "When no rank looks at it any more.")
      .def("allocate", &allocate, "bytes"_a, "Zeroed only where the memory is new.");
}

std::vector<Neighbourhood> local_hosts(const std::vector<int>& hosts) {
  const int size = static_cast<int>(hosts.size());
  std::vector<Neighbourhood> all(size);
  std::vector<int> ranks(size);
  std::iota(ranks.begin(), ranks.end(), 0);
  const auto members_of = [&](int rank) {
    std::vector<int> members;
    for (int r = 0; r < size; ++r)
      if (hosts[r] == hosts[rank]) members.push_back(r);
    return members;
  };
  for (int r = 0; r < size; ++r) {
    all[r].host = make_host(r, "memfd");
    all[r].members = members_of(r);
  }
  for (int r = 0; r < size; ++r)
    for (const int member : all[r].members) {
      if (member == r) continue;
      const std::string reason = all[r].host->attach(member, all[member].host->heap().card());
      if (!reason.empty()) fail(ErrorKind::transport, reason);
    }
  add_local_mail(all, ranks);
  return all;
}

void add_local_mail(std::vector<Neighbourhood>& neighbourhoods, const std::vector<int>& ranks) {
  std::map<int, uint64_t> mail;
  for (size_t r = 0; r < ranks.size(); ++r)
    if (neighbourhoods[r].host)
      mail[ranks[r]] = make_mail(*neighbourhoods[r].host, static_cast<int>(neighbourhoods[r].members.size()));
  for (Neighbourhood& one : neighbourhoods)
    for (const int member : one.members) one.mail_offsets.push_back(mail.at(member));
}

}  // namespace ringdp
