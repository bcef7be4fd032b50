#include "bindings/guard.h"

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <string>

#include "guard/watch.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ringdp {
namespace {

std::shared_ptr<Watch> make_watch(const std::string& path, int rank, int size, int local_rank, int local_size,
                                  const std::string& job) {
  const Flight::Owner owner{rank, size, local_rank, local_size, job};
  return std::make_shared<Watch>(std::make_shared<Flight>(path, owner));
}

// Others may have to wait for this rank for so many seconds from now on; never for less than was said before. What was.
int64_t be_patient(Watch& watch, double seconds) {
  auto& until = watch.flight().head().patient_until;
  const int64_t before = until.load();
  until.store(std::max(before, nanoseconds(Deadline::in(Seconds(seconds)).end())));
  return before;
}

// What an operation's record costs: begun, and told of three stages.
double seconds_per_record(Watch& watch, int times) {
  Flight& flight = watch.flight();
  const char name[] = "gradients of layer 17";
  const auto began = Clock::now();
  for (int i = 0; i < times; ++i) {
    const uint64_t number = flight.begin({0, 0, 0, 17, 0, 1 << 20, name, sizeof name - 1, recently()}, Stage::submit);
    for (const Stage stage : {Stage::agree, Stage::reduce, Stage::done}) flight.enter(number, stage);
  }
  return Seconds(Clock::now() - began).count() / times;
}

// This rank's, the oldest first; those that are just being written are left out.
nb::bytes records_of(Watch& watch) {
  const uint64_t last = watch.flight().head().submitted.load(std::memory_order_acquire);
  std::string found;
  for (uint64_t number = last - std::min<uint64_t>(last, FlightHead::kRecords) + 1; number <= last; ++number) {
    const FlightRecord& record = watch.flight().records()[(number - 1) % FlightHead::kRecords];
    if (record.number.load(std::memory_order_acquire) == number)
      found.append(reinterpret_cast<const char*>(&record), sizeof record);
  }
  return nb::bytes(found.data(), found.size());
}

}  // namespace

void bind_guard(nb::module_& m) {
  nb::class_<Watch>(m, "Watch", "This process's flight recorder, and the thread that watches its neighbours.")
      .def(nb::new_(&make_watch), "path"_a, "rank"_a, "size"_a, "local_rank"_a, "local_size"_a, "job"_a,
           "path: of the recorder's file, which must not be there yet; empty: none.")
      .def_prop_ro("path", [](Watch& w) { return w.flight().path(); })
      .def_prop_ro("token", [](Watch& w) { return w.flight().head().token; })
      .def("start", &Watch::start, "end"_a)
      .def(
          "place",
          [](Watch& w, int rank, int size, int local_rank, int local_size, const std::string& job,
             const std::string& folder) { w.place({rank, size, local_rank, local_size, job}, folder); },
          "rank"_a, "size"_a, "local_rank"_a, "local_size"_a, "job"_a, "folder"_a)
      .def("attach", nb::overload_cast<int, const std::string&, uint64_t>(&Watch::attach), "rank"_a, "path"_a,
           "token"_a, "Map a neighbour's recorder; why it cannot be, or an empty string.")
      .def("set_places", &Watch::set_places, "groups"_a, "hosts"_a,
           "Of each rank of the job: a number that those have in common which read each other's recorders, and its "
           "host.")
      .def_prop_ro(
          "stacks", [](Watch& w) { return w.flight().stacks(); },
          "The file descriptor that the process writes its Python stacks to; -1: there is none.")
      .def(
          "writes_stacks_on", [](Watch& w, int signal) { w.flight().head().stack_signal = signal; }, "signal"_a)
      .def(
          "unlink", [](Watch& w) { w.flight().unlink(); }, "Those who need it have mapped it: take its name away.")
      .def(
          "enter",
          [](Watch& w, const std::string& what, double report, double seconds, const std::string& recorders) {
            return w.enter(what, report, seconds, recorders);
          },
          "what"_a, "report"_a, "seconds"_a, "recorders"_a = "",
          "A call without a deadline begins: a line is printed if it has not ended after `report` seconds, and the "
          "process ends after `seconds`. recorders: a pattern of their names, to say which rank of the host has none.")
      .def("leave", &Watch::leave, "call"_a)
      .def("be_patient", &be_patient, "seconds"_a)
      .def(
          "patient_until", [](Watch& w, int64_t until) { w.flight().head().patient_until.store(until); }, "until"_a)
      .def(
          "stepped", [](Watch& w) { w.flight().stepped(); }, "An optimizer has made a step.")
      .def(
          "failed_by", [](Watch& w, const std::string& failure) { w.flight().failed_by(failure); }, "failure"_a)
      .def("report", &Watch::report, "verdict"_a, "print"_a, "all"_a = false, nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("verdict", &Watch::verdict)
      .def_prop_ro(
          "blamed", &Watch::blamed,
          "The verdict of this rank, just now, or else of the rank of this host that had one first; or nothing.")
      .def(
          "recovers", [](Watch& w) { w.flight().head().recovers.store(1); },
          "Neighbours see that this rank is about to go on without those that are lost.")
      .def(
          "neighbours",
          [](Watch& w) {
            nb::list all;
            for (const Watch::Neighbour& one : w.neighbours())
              all.append(nb::make_tuple(one.rank, one.pid, one.is_dead, one.can_be_killed, one.is_stopped, one.recovers,
                                        one.patience));
            return all;
          },
          "Of each other rank of this host: rank, pid, is_dead, can_be_killed, is_stopped, recovers, patience "
          "(seconds).")
      .def("kill", &Watch::kill, "rank"_a, "seconds"_a, nb::call_guard<nb::gil_scoped_release>(),
           "End the process of a rank of this host; whether it was gone within so many seconds.")
      .def("dead", &Watch::dead, "Ranks of this host whose process has ended, and not in peace.")
      .def_prop_ro("heard_of_death", &Watch::heard_of_death, "Of a rank of another host.")
      .def(
          "look",
          [](Watch& w) {
            nb::list lines;
            for (const Seen& seen : w.look({})) lines.append(in_words(seen));
            return lines;
          },
          "A line about each rank of this host.")
      .def(
          "ended", [](Watch& w) { w.flight().head().standing.store(Standing::ended); }, "All ranks have left.")
      .def("records", &records_of, "Of this rank's operations, the oldest first: bytes, as flight.h lays them out.")
      .def("seconds_per_record", &seconds_per_record, "times"_a, "What a record costs: for tests/perf/flight.py.")
      .def("forget_after_fork",
           [](nb::handle self) {
             nb::cast<Watch&>(self).forget_after_fork();
             self.inc_ref();  // never destroyed: what it has mapped is not there
             nb::set_leak_warnings(false);
           })
      .def("close", &Watch::close, nb::call_guard<nb::gil_scoped_release>());
  m.attr("FLIGHT_BYTES") = FlightView::kBytes;
}

}  // namespace ringdp
