// Roll calls and alarms on a rank, whose peer on another host sends what an input says.
//
// An input: dispatches, each with its tag, after which this rank looks. It has asked already, so answers are taken, too.
#include "guard/dispatches.h"

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "fuzz.h"
#include "guard/alarm.h"
#include "guard/roll_call.h"
#include "transport/local.h"

using namespace ringdp;
using namespace ringdp::fuzz;

namespace {

constexpr int kMost = 20;  // dispatches of an input

struct Rank {
  Rank(std::shared_ptr<LocalHub> hub, int rank)
      : control(make_local_transport(std::move(hub), rank)),
        watch(std::make_shared<Flight>("", Flight::Owner{rank, 2, 0, 1, "fuzz"})) {
    watch.set_places({0, 1}, {"n0", "n1"});
    options.timeout = options.report_after = 0;
    roll_call = std::make_unique<RollCall>(options, *control, watch);
    alarm = std::make_unique<Alarm>(*control, watch);
  }
  void look() {
    roll_call->look([this] { return std::optional<Wait>(Wait{Question(), "the end", since, {0, 1}}); });
    (void)Alarm(*control, watch).look();  // a new one: it looks at once
  }
  Options options;
  std::unique_ptr<Transport> control;
  Watch watch;
  std::unique_ptr<RollCall> roll_call;
  std::unique_ptr<Alarm> alarm;
  const Clock::time_point since = Clock::now();
};

// What has been sent to a rank, as an input has it.
std::string received(Transport& control) {
  std::string all;
  for (const int tag : {Dispatches::question, Dispatches::answer, Dispatches::alarm}) {
    size_t bytes = 0;
    for (int from = 0; (from = control.arrived(tag, &bytes)) >= 0;) {
      std::string one(bytes, '\0');
      Request request = control.receive(from, tag, one.data(), bytes);
      if (!control.test(request)) fail(ErrorKind::internal, "the corpus cannot be recorded");
      all += bytes_of(static_cast<uint8_t>(tag - 1)) + bytes_of(static_cast<uint32_t>(bytes)) + one;
    }
  }
  return all;
}

std::vector<std::string> right_ones() {
  std::vector<std::string> all;
  const auto hub = make_local_hub(2, 0);
  Rank zero(hub, 0), one(hub, 1);
  one.look();  // asks
  one.alarm->tell_of_exception("rank 1 (host n1, process 7) was ended by ValueError");
  all.push_back(received(*zero.control));
  zero.look();  // asks, too
  const auto until = Clock::now() + std::chrono::milliseconds(300);
  while (Clock::now() < until) one.look();  // answers
  all.push_back(received(*zero.control));
  return all;
}

FUZZ(dispatches, right_ones) {
  const auto hub = make_local_hub(2, 0);
  Rank rank(hub, 0);
  const auto peer = make_local_transport(hub, 1);
  std::deque<std::string> memory;  // of what the peer sends
  std::vector<Request> requests;
  rank.look();
  Input in(input);
  for (int n = 0; n < kMost && !in.is_over(); ++n) {
    const int tag = 1 + in.take<uint8_t>() % 3;
    memory.push_back(in.take(in.take<uint32_t>()));
    requests.push_back(peer->send(0, tag, memory.back().data(), memory.back().size()));
    rank.look();
  }
}

}  // namespace
