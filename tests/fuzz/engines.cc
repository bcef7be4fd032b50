// A whole engine, whose peer on another host sends what an input says. What it should send is recorded from a real one.
//
// An input: which operations this rank submits, then what the peer posts, sends and receives alike, in order.
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "engine/engine.h"
#include "fuzz.h"
#include "transport/local.h"

using namespace ringdp;
using namespace ringdp::fuzz;

namespace {

constexpr int kMost = 200;            // messages of an input
constexpr size_t kLongest = 8 << 10;  // bytes of one
constexpr uint64_t kSeveral = 300;    // elements that go in segments
constexpr double kPatience = 1000;    // seconds: nothing here waits for a deadline

enum Posted : uint8_t { sends = 1, on_control = 2 };

// Of rank 1, while the corpus is made: notes what it posts.
class Recorder final : public Transport {
 public:
  Recorder(std::unique_ptr<Transport> inner, bool control, std::string& record)
      : inner_(std::move(inner)), control_(control), record_(record) {}
  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  int max_tag() const override { return inner_->max_tag(); }
  Request send(int peer, int tag, const void* data, size_t bytes) override {
    note(sends, tag, bytes);
    record_.append(static_cast<const char*>(data), bytes);
    return inner_->send(peer, tag, data, bytes);
  }
  Request receive(int peer, int tag, void* data, size_t bytes) override {
    note(0, tag, bytes);
    return inner_->receive(peer, tag, data, bytes);
  }
  bool test(Request& request, size_t* received) override { return inner_->test(request, received); }
  int arrived(int tag, size_t* bytes) override { return inner_->arrived(tag, bytes); }
  void cancel(Request& request) override { inner_->cancel(request); }
  void abort(int code) override { inner_->abort(code); }

 private:
  void note(uint8_t what, int tag, size_t bytes) {
    record_ += bytes_of(static_cast<uint8_t>(what | (control_ ? on_control : 0)));
    record_ += bytes_of(static_cast<uint16_t>(tag)) + bytes_of(static_cast<uint32_t>(bytes));
  }
  const std::unique_ptr<Transport> inner_;
  const bool control_;
  std::string& record_;
};

struct Pair {  // of hubs: both ranks' ways
  std::shared_ptr<LocalHub> data = make_local_hub(2, 0), control = make_local_hub(2, 0);
  std::unique_ptr<Transport> of_data(int rank) const { return make_local_transport(data, rank); }
  std::unique_ptr<Transport> of_control(int rank) const { return make_local_transport(control, rank); }
};

std::unique_ptr<Engine> engine_on(std::unique_ptr<Transport> data, std::unique_ptr<Transport> control) {
  Options options;
  options.timeout = kPatience;
  options.segment_bytes = 256;
  options.letter_bytes = 64;
  options.depth = 2;
  Membership both{{0, 1}, std::move(data), std::move(control), {2, 2, 1}, {}, {}};
  return std::make_unique<Engine>(options, 0, std::move(both));
}

// What a rank submits.
class Caller {
 public:
  explicit Caller(Engine& engine)
      : engine_(engine), keeps_thread_off_(engine), tensors_(8 * kSeveral), rank_(engine.rank()) {}

  void submit(uint8_t which) {
    switch (which % 8) {
      case 0:
        one("small", OpKind::allreduce, {5});
        return one("barrier", OpKind::barrier, {});
      case 1:
        return one("large", OpKind::allreduce, {kSeveral});
      case 2:
        return one("rows", OpKind::allgather, {static_cast<uint64_t>(3 + rank_), 2});
      case 3:
        return one("split", OpKind::alltoall, {4}, {1, 3});
      case 4:
        return one("differs", OpKind::allreduce, {static_cast<uint64_t>(5 + rank_)});
      case 5:  // rank 0 has joined, and hears what the other has submitted
        if (rank_ == 0) return one("join", OpKind::join, {});
        one("alone", OpKind::allreduce, {kSeveral});
        one("rows alone", OpKind::allgather, {3});
        return one("join", OpKind::join, {});
      case 6:
        one("root", OpKind::broadcast, {kSeveral}, {}, 1);
        return one("scattered", OpKind::reducescatter, {kSeveral});
      default:
        return in_a_plan();
    }
  }
  void turn() {
    engine_.take_turn();
    if (after_) after_();
  }
  bool done() const {
    for (const auto& handle : handles_)
      if (!handle->done()) return false;
    return true;
  }

 private:
  Submission like(const std::string& name, OpKind kind, std::vector<uint64_t> shape) {
    Submission s;
    s.name = name;
    s.kind = kind;
    s.shape = std::move(shape);
    s.input = tensors_.data();
    outputs_.emplace_back(2 * kSeveral);
    s.output = s.first_may_differ() ? nullptr : outputs_.back().data();
    return s;
  }
  void one(const std::string& name, OpKind kind, std::vector<uint64_t> shape, std::vector<uint64_t> splits = {},
           int root = -1) {
    Submission s = like(name, kind, std::move(shape));
    s.splits = std::move(splits);
    s.root = root;
    handles_.push_back(engine_.submit(std::move(s)));
  }
  // The lane of a first plan is 1; of one that has not been opened a bucket is refused.
  void in_a_plan() {
    Submission plan = like("plan", OpKind::open_plan, {});
    plan.text = "weights float32[300]";
    handles_.push_back(engine_.submit(std::move(plan)));
    after_ = [this] {
      if (handles_.size() > 1 || !handles_[0]->done()) return;
      for (uint32_t bucket = 0; bucket < 2; ++bucket) {
        Submission s = like("", OpKind::allreduce, {kSeveral});
        s.lane = 1, s.bucket = bucket, s.plan_digest = 9, s.input = s.output;
        handles_.push_back(engine_.submit(std::move(s)));
      }
      handles_.push_back(engine_.vote(0, 1, {1, 2, 3}));
    };
  }

  Engine& engine_;
  const Engine::Caller keeps_thread_off_;
  std::vector<float> tensors_;
  std::deque<std::vector<float>> outputs_;
  std::vector<std::shared_ptr<Handle>> handles_;
  std::function<void()> after_;
  const int rank_;
};

// What rank 1 posts when both are right.
std::string recorded(uint8_t which) {
  std::string record = bytes_of(which);
  const Pair hubs;
  const auto first = engine_on(hubs.of_data(0), hubs.of_control(0));
  const auto second = engine_on(std::make_unique<Recorder>(hubs.of_data(1), false, record),
                                std::make_unique<Recorder>(hubs.of_control(1), true, record));
  Caller zero(*first), one(*second);
  zero.submit(which), one.submit(which);
  for (int turns = 0; turns < 20000 && !(zero.done() && one.done()); ++turns) zero.turn(), one.turn();
  if (!zero.done() || !one.done()) fail(ErrorKind::internal, "the corpus cannot be recorded: ", int{which});
  return std::string(record);  // as it is now: the engines are still to end
}

std::vector<std::string> conversations() {
  std::vector<std::string> all;
  for (uint8_t which = 0; which < 8; ++which) all.push_back(recorded(which));
  return all;
}

FUZZ(engine_with_any_peer, conversations) {
  const Pair hubs;
  const auto data = hubs.of_data(1), control = hubs.of_control(1);
  std::deque<std::string> memory;  // of what the peer posts
  std::vector<Request> requests;
  Input in(input);
  const auto engine = engine_on(hubs.of_data(0), hubs.of_control(0));
  Caller caller(*engine);
  caller.submit(in.take<uint8_t>());
  for (int n = 0; n < kMost && !in.is_over(); ++n) {
    const auto how = in.take<uint8_t>();
    const int tag = in.take<uint16_t>() % (data->max_tag() + 1);
    const size_t bytes = std::min<size_t>(in.take<uint32_t>(), kLongest);
    Transport& way = how & on_control ? *control : *data;
    memory.push_back(how & sends ? in.take(bytes) : std::string(bytes, '\0'));
    std::string& at = memory.back();
    requests.push_back(how & sends ? way.send(0, tag, at.data(), at.size()) : way.receive(0, tag, at.data(), bytes));
    for (int turns = 0; turns < 3; ++turns) caller.turn();
  }
  for (int turns = 0; turns < 60; ++turns) caller.turn();
  (void)engine->shutdown(0);
}

}  // namespace
