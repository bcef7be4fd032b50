// An engine whose transport fails, as MPI does where a rank is lost: what it does afterwards, and whose the memory is.
#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "engine/engine.h"
#include "failing.h"
#include "transport/local.h"

using namespace ringdp;
using namespace ringdp::tests;

namespace {

constexpr double kLong = 60;  // seconds that nothing here takes

// Two ranks on two hosts; the transports of rank 0 can fail.
struct Two {
  Two() {
    const auto data_hub = make_local_hub(2, 0, {}), control_hub = make_local_hub(2, 0, {});
    for (const int rank : {0, 1}) {
      auto data = make_local_transport(data_hub, rank), control = make_local_transport(control_hub, rank);
      if (rank == 0) data = std::make_unique<Failing>(std::move(data), of_data);
      if (rank == 0) control = std::make_unique<Failing>(std::move(control), of_control);
      Options options;
      options.timeout = kLong;
      engines.push_back(std::make_unique<Engine>(
          options, 1, Membership{{0, 1}, std::move(data), std::move(control), placement_on({0, 1}), {}, {}}));
    }
  }
  // One that was abandoned has memory that the other may write until that has ended, too; so none goes before.
  ~Two() {
    for (auto& engine : engines) engine->abandon();
  }
  std::shared_ptr<Handle> allreduce(int rank) {
    Submission s;
    s.kind = OpKind::allreduce;
    s.name = "gradients";
    s.input = s.output = tensors[rank].data();
    s.shape = {tensors[rank].size()};
    return engines[static_cast<size_t>(rank)]->submit(std::move(s));
  }

  TransportFaults of_data, of_control;
  std::vector<float> tensors[2] = {std::vector<float>(1 << 16, 1), std::vector<float>(1 << 16, 2)};
  std::vector<std::unique_ptr<Engine>> engines;
};

template <class Condition>
void wait_for(const Condition& condition) {
  const Deadline deadline = Deadline::in(Seconds(kLong));
  while (!condition()) {
    CHECK(!deadline.passed());
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

}  // namespace

// MPI frees a request that fails; it is another message's then, and to test it again would free that one.
TEST(after_a_transport_has_failed_nothing_is_tested_again) {
  Two two;
  const auto handle = two.allreduce(0);                         // rank 1 does not come
  std::this_thread::sleep_for(std::chrono::milliseconds(600));  // until the engine rests between its turns
  two.of_control.fails = true;
  wait_for([&] { return handle->done(); });
  CHECK(handle->failed());
  two.engines[0]->abandon();
  CHECK(two.of_control.tests_after == 0, two.of_control.tests_after.load(), " tests after one had failed");
}

TEST(where_a_transport_fails_under_way_the_tensors_stay_in_its_hands) {
  Two two;
  two.of_data.holds = true;
  const auto handle = two.allreduce(0);
  two.allreduce(1);
  wait_for([&] { return handle->stage() == Stage::reduce; });
  two.of_control.fails = true;
  wait_for([&] { return handle->done(); });
  CHECK(handle->failed());
  CHECK(handle->memory_in_use(), "what was posted for it may still be written");
}
