// Time in which a process did not run.
#include "guard/pauses.h"

#include "check.h"
#include "guard/watch.h"

using namespace ringdp;

namespace {

const Clock::time_point kStart = Clock::now();
Clock::time_point at(double seconds) { return kStart + std::chrono::duration_cast<Clock::duration>(Seconds(seconds)); }
double seconds(Clock::duration time) { return Seconds(time).count(); }

}  // namespace

TEST(a_process_that_runs_has_no_pauses) {
  Pauses pauses;
  pauses.begin(at(0));
  for (const double beat : {1.0, 2.0, 4.9, 4.8, 5.0}) CHECK(seconds(pauses.beat(at(beat))) == 0, beat);
  CHECK(seconds(pauses.since(at(0))) == 0, "it has run all the time");
  CHECK(pauses.last_end() == Clock::time_point(), "it was never continued");
}

TEST(where_nobody_beats_nothing_is_known) {
  Pauses pauses;
  CHECK(seconds(pauses.beat(at(100))) == 0, "nobody has said that it would");
  CHECK(seconds(pauses.beat(at(200))) == 0, "nor now");
  CHECK(seconds(pauses.since(at(0))) == 0, "all of it counts");
}

TEST(a_pause_does_not_count_from_wherever_one_counts) {
  Pauses pauses;
  pauses.begin(at(0));
  pauses.beat(at(2));
  CHECK(seconds(pauses.beat(at(103))) == 100, "a second after the last beat may have passed before it");
  CHECK(seconds(pauses.beat(at(103))) == 0, "another thread has seen it already");
  CHECK(seconds(pauses.since(at(0))) == 100, "from before it");
  CHECK(seconds(pauses.since(at(53))) == 50, "from within");
  CHECK(seconds(pauses.since(at(103.5))) == 0, "from behind");
  CHECK(pauses.last_end() == at(103), "then it went on");
  pauses.beat(at(104));
  pauses.beat(at(115));
  CHECK(seconds(pauses.since(at(0))) == 110, "of both");
}

TEST(the_latest_of_many_pauses_are_remembered) {
  Pauses pauses;
  pauses.begin(at(0));
  for (int i = 1; i <= 100; ++i) pauses.beat(at(11 * i));
  CHECK(seconds(pauses.since(at(11 * 90))) == 100, "ten of ten seconds");
  CHECK(pauses.last_end() == at(1100), "the last");
}
