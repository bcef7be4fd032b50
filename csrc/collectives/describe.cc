#include "collectives/describe.h"

namespace ringdp {
namespace {

std::string number_of(const Move& token) {
  return std::to_string(token.count) + (token.line == 0 ? "" : " of line " + std::to_string(token.line));
}

}  // namespace

const char* name_of(Place place) {
  constexpr const char* names[] = {"input", "output", "scratch", "area"};
  return names[static_cast<int>(place)];
}

std::string describe(const Region& region) {
  const std::string whose = region.owner == Region::kOwn ? "" : "rank " + std::to_string(region.owner) + "'s ";
  return whose + name_of(region.place) + " " + std::to_string(region.offset);
}

std::string describe(const Move& m) {
  const std::string n = std::to_string(m.count) + (m.count == 1 ? " element" : " elements");
  const std::string peer = "rank " + std::to_string(m.peer);
  switch (m.kind) {
    case Kind::send:
      return "send " + n + ", " + describe(m.from) + " to " + peer;
    case Kind::receive:
      return "receive " + n + ", " + peer + " to " + describe(m.to);
    case Kind::reduce:
      return "reduce " + n + ", " + describe(m.to) + " = " + describe(m.from) + " op " + describe(m.with);
    case Kind::copy:
      return (m.prescale ? "scale " : "copy ") + n + ", " + describe(m.from) + " to " + describe(m.to);
    case Kind::finish:
      return "finish " + n + ", " + describe(m.from) + " to " + describe(m.to);
    case Kind::signal:
      return "signal " + number_of(m);
    case Kind::await:
      return "await " + number_of(m);
  }
  return "unknown move";
}

}  // namespace ringdp
