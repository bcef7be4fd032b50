// What compiled programs of XLA call, by frames as XLA would make them: exchanges of one rank with itself and with another,
// everything that a frame may lack, and operations that fail.
#include <chrono>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/lsan_interface.h>
#endif

#include "check.h"
#include "engine/current.h"
#include "engine/local_ranks.h"
#include "failing.h"
#include "xla/handlers.h"

using namespace ringdp;
using namespace ringdp::tests;

namespace {

namespace ffi = ringdp::xla;

struct MadeError {
  int code;
  std::string text;
};

ffi::ErrorOfXla* make_error(ffi::MakeError* given) {
  return reinterpret_cast<ffi::ErrorOfXla*>(new MadeError{given->code, given->message});
}

// A call, as a compiled program makes it: everything in it may be changed before.
struct Program {
  ffi::Functions functions{sizeof functions, nullptr, {}, nullptr, make_error};
  std::vector<std::vector<int64_t>> shapes;
  std::vector<ffi::Buffer> inputs, outputs;
  std::map<std::string, int64_t> integers{{"process_set", 0}, {"rank", -1}, {"ranks", -1}, {"op", 1}, {"root", 0}};
  std::map<std::string, double> numbers{{"prescale", 1}, {"postscale", 1}};
  std::map<std::string, std::string> texts{{"name", "x"}, {"layout", ""}};
  std::map<std::string, std::vector<int64_t>> arrays;
  std::map<std::string, int32_t> dtypes;  // of attributes that have another one than is usual
  std::function<void(ffi::Frame&)> last;  // done to the frame before it is handed over
  ffi::Frame frame{sizeof(ffi::Frame), nullptr, nullptr, nullptr, ffi::kExecute, {}, {}, {}};

  Program() { shapes.reserve(16); }

  template <class T>
  void add(std::vector<ffi::Buffer>& to, ffi::Type type, std::vector<T>& values, std::vector<int64_t> shape) {
    shapes.push_back(std::move(shape));
    to.push_back(
        {sizeof(ffi::Buffer), nullptr, type, values.data(), int64_t(shapes.back().size()), shapes.back().data()});
  }

  // "" if it went well.
  std::string call(ffi::Handler* handler) {
    std::vector<int32_t> kinds;
    std::vector<ffi::Bytes> names;
    std::vector<void*> values;
    std::vector<ffi::Scalar> scalars;
    std::vector<ffi::Bytes> spans;
    std::vector<ffi::Array> spaces;
    scalars.reserve(16), spans.reserve(16), spaces.reserve(16);
    const auto dtype = [&](const std::string& name, int32_t usual) {
      return dtypes.count(name) ? dtypes.at(name) : usual;
    };
    const auto attribute = [&](const std::string& name, int32_t kind, void* value) {
      names.push_back({name.data(), name.size()}), kinds.push_back(kind), values.push_back(value);
    };
    for (auto& [name, value] : integers)
      scalars.push_back({dtype(name, ffi::kS64), &value}), attribute(name, ffi::kScalar, &scalars.back());
    for (auto& [name, value] : numbers)
      scalars.push_back({dtype(name, ffi::kF64), &value}), attribute(name, ffi::kScalar, &scalars.back());
    for (auto& [name, value] : texts)
      spans.push_back({value.data(), value.size()}), attribute(name, ffi::kString, &spans.back());
    for (auto& [name, value] : arrays)
      spaces.push_back({dtype(name, ffi::kS64), value.size(), value.data()}),
          attribute(name, ffi::kArray, &spaces.back());
    std::vector<ffi::Bytes*> pointers;
    for (ffi::Bytes& name : names) pointers.push_back(&name);
    std::vector<int32_t> buffers(16, ffi::kBuffer);
    std::vector<void*> in, out;
    for (ffi::Buffer& buffer : inputs) in.push_back(&buffer);
    for (ffi::Buffer& buffer : outputs) out.push_back(&buffer);
    frame.functions = &functions;
    frame.arguments = {sizeof frame.arguments, nullptr, int64_t(in.size()), buffers.data(), in.data()};
    frame.results = {sizeof frame.results, nullptr, int64_t(out.size()), buffers.data(), out.data()};
    frame.attributes = {sizeof frame.attributes, nullptr,      int64_t(names.size()), kinds.data(),
                        pointers.data(),         values.data()};
    if (last) last(frame);
    std::unique_ptr<MadeError> error(reinterpret_cast<MadeError*>(handler(&frame)));
    return error ? std::to_string(error->code) + " " + error->text : "";
  }
};

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// The one engine of this process, while it is there.
struct OneRank {
  OneRank() {
    auto engines = local_engines(Options(), 1, 0, {});
    set_current(std::move(engines[0]));
  }
  ~OneRank() { set_current(nullptr); }
};

// This process's engine, and another rank that it meets.
struct TwoRanks {
  explicit TwoRanks(Options options = {}, const std::vector<int>& hosts = {}) {
    auto engines = local_engines(options, 2, 0, hosts);
    here = std::move(engines[0]), other = std::move(engines[1]);
    set_current(here);
  }
  ~TwoRanks() {
    set_current(nullptr);
    here->begin_shutdown();  // both, before one waits for the other
    other->begin_shutdown();
  }

  std::shared_ptr<Engine> here;
  std::unique_ptr<Engine> other;
};

std::shared_ptr<Handle> allreduce_of(Engine& engine, const std::string& name, std::vector<float>& x) {
  Submission s;
  s.name = name;
  s.input = s.output = x.data();
  s.shape = {x.size()};
  return engine.submit(std::move(s));
}

// Memory that is given up is never freed: that is no leak.
#ifdef __SANITIZE_ADDRESS__
using GivesUp = __lsan::ScopedDisabler;
#else
struct GivesUp {
  GivesUp() {}
};
#endif

// Of one tensor, as both sides write it.
Program program_of(std::vector<float>& x, std::vector<float>& y) {
  Program program;
  program.add(program.inputs, ffi::kF32, x, {int64_t(x.size())});
  program.add(program.outputs, ffi::kF32, y, {int64_t(y.size())});
  return program;
}

}  // namespace

TEST(xla_asks_for_the_version) {
  for (const ffi::Target& target : ffi::kTargets) {
    ffi::Metadata metadata{};
    metadata.struct_size = sizeof metadata;
    metadata.traits = 7;
    ffi::MetadataExtension extension{{sizeof extension, ffi::kMetadata, nullptr}, &metadata};
    ffi::Extension other{sizeof other, 77, &extension.base};
    ffi::Frame frame{};
    frame.struct_size = sizeof frame;
    frame.extensions = &other;
    CHECK(target.handler(&frame) == nullptr, target.name);
    CHECK(metadata.version.major == 0 && metadata.version.minor == 1 && metadata.traits == 0);
  }
}

TEST(xla_calls_exchange) {
  const OneRank rank;
  std::vector<float> x{1, 2, 3, 4, 5, 6}, y(6);
  {
    Program program;
    program.add(program.inputs, ffi::kF32, x, {3, 2});
    program.add(program.outputs, ffi::kF32, y, {3, 2});
    std::vector<char> none;
    program.add(program.inputs, ffi::kToken, none, {});
    program.numbers["prescale"] = 2;
    CHECK(program.call(ffi::allreduce) == "");
    CHECK((y == std::vector<float>{2, 4, 6, 8, 10, 12}));
    CHECK((x == std::vector<float>{1, 2, 3, 4, 5, 6}), "read only");
    CHECK(program.call(ffi::broadcast) == "");
    CHECK(y == x);
    CHECK(program.call(ffi::reducescatter) == "");
    CHECK((y == std::vector<float>{2, 4, 6, 8, 10, 12}));
    program.arrays["rows"] = {3};
    CHECK(program.call(ffi::allgather) == "");
    CHECK(y == x);
    program.arrays["rows"] = {2};
    CHECK(has(program.call(ffi::allgather), "3 ringdp.MismatchError: rank 0: allgather 'x': rows 3 have come"));
  }
  Program program;
  std::vector<int32_t> rows(1);
  program.add(program.inputs, ffi::kF32, x, {3, 2});
  program.add(program.outputs, ffi::kF32, y, {3, 2});
  program.add(program.outputs, ffi::kS32, rows, {1});
  program.arrays = {{"splits", {3}}, {"received", {3}}};
  CHECK(program.call(ffi::alltoall) == "");
  CHECK(y == x && rows[0] == 3);
  CHECK(Program().call(ffi::barrier) == "");
}

TEST(xla_calls_exchange_many_as_one) {
  const OneRank rank;
  Program program;
  std::vector<float> a{1, 2, 3}, c{7}, a_out(3), c_out(1), none;
  std::vector<int32_t> b{4, 5}, b_out(2);
  program.add(program.inputs, ffi::kF32, a, {3});
  program.add(program.inputs, ffi::kS32, b, {2, 1});
  program.add(program.inputs, ffi::kF32, none, {0, 4});
  program.add(program.inputs, ffi::kF32, c, {});
  program.add(program.outputs, ffi::kF32, a_out, {3});
  program.add(program.outputs, ffi::kS32, b_out, {2, 1});
  program.add(program.outputs, ffi::kF32, none, {0, 4});
  program.add(program.outputs, ffi::kF32, c_out, {});
  program.texts["layout"] = "a\nb\nnone\nc";
  program.numbers["postscale"] = 2;
  CHECK(program.call(ffi::allreduce) == "");
  CHECK((a_out == std::vector<float>{2, 4, 6}) && c_out[0] == 14 && (b_out == std::vector<int32_t>{8, 10}));
  CHECK(program.call(ffi::broadcast) == "");
  CHECK(a_out == a && b_out == b && c_out == c);
}

TEST(xla_calls_exchange_groups) {
  const OneRank rank;
  Program program;
  std::vector<float> a{1, 2, 3}, a_out(3), none;
  std::vector<int32_t> b{4, 5}, b_out(2);
  program.add(program.inputs, ffi::kF32, a, {3});
  program.add(program.inputs, ffi::kF32, none, {0, 4});
  program.add(program.inputs, ffi::kS32, b, {1, 2});
  program.add(program.outputs, ffi::kF32, a_out, {3});
  program.add(program.outputs, ffi::kF32, none, {0, 4});
  program.add(program.outputs, ffi::kS32, b_out, {1, 2});
  program.texts["layout"] = "a\nnone\nb";
  program.arrays["rows"] = {3, 0, 1};
  program.numbers["prescale"] = 2;
  CHECK(program.call(ffi::allgather) == "");
  CHECK(a_out == a && b_out == b);
  CHECK(program.call(ffi::reducescatter) == "");
  CHECK((a_out == std::vector<float>{2, 4, 6} && b_out == std::vector<int32_t>{8, 10}));
  program.arrays["rows"] = {3, 0, 2};
  CHECK(has(program.call(ffi::allgather), "rows 1 have come from the ranks, and the program was compiled for 2"));
}

TEST(xla_that_asks_for_no_version_hears_none) {
  ffi::Metadata metadata{};
  metadata.version.minor = 9;
  ffi::MetadataExtension extension{{sizeof extension, ffi::kMetadata, nullptr}, nullptr};
  ffi::Frame frame{};
  frame.extensions = &extension.base;
  CHECK(ffi::barrier(&frame) == nullptr, "nothing to write to");
  extension.metadata = &metadata;
  metadata.struct_size = offsetof(ffi::Metadata, traits);
  CHECK(ffi::barrier(&frame) == nullptr && metadata.version.minor == 9, "too short to write to");
  extension.base.struct_size = sizeof extension.base;  // without its pointer: it is passed over, and the call is one
  Program program;
  program.frame.extensions = &extension.base;
  CHECK(has(program.call(ffi::barrier), "9 ringdp.NotInitializedError"));
}

TEST(xla_calls_without_an_engine) {
  for (const ffi::Target& target : ffi::kTargets) {
    std::vector<float> x{1, 2}, y{8, 9};
    const std::string said = program_of(x, y).call(target.handler);
    CHECK(said ==
              "9 ringdp.NotInitializedError: ringdp is not initialised: call ringdp.init() first (or it was shut down)",
          target.name, ": ", said);
    CHECK((y == std::vector<float>{8, 9}));
  }
}

TEST(xla_calls_of_nothing) {
  const OneRank rank;
  std::vector<float> none;
  std::vector<int32_t> rows{7};
  Program program;
  program.add(program.inputs, ffi::kF32, none, {0, 2});
  program.add(program.outputs, ffi::kF32, none, {0, 2});
  program.arrays = {{"rows", {0}}, {"splits", {0}}, {"received", {0}}};
  for (ffi::Handler* handler : {ffi::allreduce, ffi::broadcast, ffi::allgather, ffi::reducescatter})
    CHECK(program.call(handler) == "");
  program.texts["layout"] = "nothing at all";
  CHECK(program.call(ffi::allreduce) == "");
  program.add(program.outputs, ffi::kS32, rows, {1});
  CHECK(program.call(ffi::alltoall) == "");
  CHECK(rows[0] == 0);
}

TEST(xla_calls_that_cannot_be) {
  std::vector<float> x{1, 2}, y{8, 9};
  const auto refused = [&](auto&& change, const std::string& why, ffi::Handler* handler = ffi::allreduce) {
    Program program = program_of(x, y);
    change(program);
    const std::string said = program.call(handler);
    CHECK(has(said, why), "wanted: ", why, "; said: ", said);
    CHECK((y == std::vector<float>{8, 9}), why);
  };
  refused([](Program&) {}, "9 ringdp.NotInitializedError: ringdp is not initialised");
  const OneRank rank;
  refused([](Program& p) { p.frame.struct_size = 40; }, "13 ringdp.RingdpError: XLA's call frame has 40 bytes");
  refused([](Program& p) { p.inputs[0].struct_size = 8; }, "XLA's buffer has 8 bytes");
  refused([](Program& p) { p.frame.stage = 1; }, "frame.stage == kExecute");
  refused([](Program& p) { p.inputs[0].dtype = 15; }, "3 ringdp.UsageError: ringdp cannot exchange XLA's dtype 15");
  refused([](Program& p) { p.shapes[0][0] = -1; }, "internal check failed");
  refused([](Program& p) { p.shapes[0][0] = int64_t{1} << 60; }, "internal check failed");
  refused([](Program& p) { p.shapes[1][0] = 1; }, "internal check failed");
  refused([](Program& p) { p.outputs[0].dtype = ffi::kS32; }, "internal check failed");
  refused([](Program& p) { p.inputs.clear(); }, "internal check failed");
  refused([](Program& p) { p.inputs[0].data = nullptr; }, "internal check failed");
  refused([](Program& p) { p.integers.erase("op"); }, "without the attribute op");
  refused([](Program& p) { p.integers["op"] = 6; }, "internal check failed");
  refused([](Program& p) { p.numbers.erase("prescale"), p.texts["prescale"] = "1"; }, "attribute prescale");
  refused([](Program& p) { p.integers["process_set"] = 3; }, "3 ringdp.UsageError: rank 0 is not in process set 3");
  refused([](Program& p) { p.integers["ranks"] = 2, p.integers["rank"] = 1; }, "was compiled for rank 1 of 2 ranks");
  refused([](Program& p) { p.integers["op"] = 0, p.inputs[0].dtype = p.outputs[0].dtype = ffi::kPred; },
          "bool tensors have no average");

  refused([](Program& p) { p.last = [](ffi::Frame& f) { f.arguments.struct_size = 8; }; }, "list of arguments has 8");
  refused([](Program& p) { p.last = [](ffi::Frame& f) { f.results.struct_size = 8; }; }, "list of results has 8 bytes");
  refused([](Program& p) { p.last = [](ffi::Frame& f) { f.attributes.struct_size = 8; }; }, "list of attributes has 8");
  refused([](Program& p) { p.last = [](ffi::Frame& f) { f.arguments.size = -1; }; }, "buffers.size >= 0");
  refused([](Program& p) { p.last = [](ffi::Frame& f) { f.results.types[0] = 2; }; }, "buffers.types[i] == kBuffer");
  refused([](Program& p) { p.last = [](ffi::Frame& f) { f.attributes.size = 0; }; }, "without the attribute name");
  refused([](Program& p) { p.integers["op"] = -1; }, "internal check failed");
  refused([](Program& p) { p.integers.erase("process_set"), p.numbers["process_set"] = 0; }, "attribute process_set");
  refused([](Program& p) { p.dtypes["op"] = ffi::kS32; }, "attribute op");
  refused([](Program& p) { p.dtypes["prescale"] = ffi::kF32; }, "attribute prescale");
  refused([](Program& p) { p.texts.erase("name"), p.integers["name"] = 1; }, "attribute name");
  refused([](Program& p) { p.texts.erase("layout"), p.arrays["layout"] = {1}; }, "attribute layout");

  // Many as one: as many results as arguments, of the same kinds.
  const auto many = [](auto&& change) { return [&](Program& p) { p.texts["layout"] = "x", change(p); }; };
  refused(many([](Program& p) { p.outputs.clear(); }), "inputs.size() == outputs.size()");
  refused(many([](Program& p) { p.inputs.clear(), p.outputs.clear(); }), "!inputs.empty()");
  refused(many([](Program& p) { p.outputs[0].dtype = ffi::kS32; }), "inputs[i].dtype == outputs[i].dtype");
  refused(many([](Program& p) { p.outputs[0].dimensions = 0; }), "inputs[i].shape == outputs[i].shape");

  const auto twice = [](std::vector<ffi::Buffer>& buffers) { buffers.push_back(buffers[0]); };
  const auto both_twice = [&](Program& p) { twice(p.inputs), twice(p.outputs), p.arrays["rows"] = {2, 2}; };
  for (ffi::Handler* handler : {ffi::allreduce, ffi::broadcast})
    refused([&](Program& p) { twice(p.outputs); }, "outputs_.size() == 1", handler);
  for (ffi::Handler* handler : {ffi::allreduce, ffi::broadcast, ffi::alltoall})
    refused([&](Program& p) { twice(p.inputs); }, "inputs_.size() == 1", handler);
  for (ffi::Handler* handler : {ffi::allgather, ffi::reducescatter}) {
    refused([&](Program& p) { p.arrays["rows"] = {2}, twice(p.inputs); }, "call.outputs().size()", handler);
    refused([&](Program& p) { p.arrays["rows"] = {2}, twice(p.outputs); }, "call.outputs().size()", handler);
    refused(both_twice, "members.size() == 1", handler);  // of many the ranks compare the layout
  }
  refused([&](Program& p) { both_twice(p), p.arrays["rows"] = {2}, p.texts["layout"] = "x"; }, "rows.size()",
          ffi::allgather);

  refused([](Program& p) { p.integers["root"] = 1; }, "root_rank 1 is not one of the 1 ranks", ffi::broadcast);
  refused([](Program& p) { p.arrays["rows"] = {2}, p.dtypes["rows"] = ffi::kS32; }, "attribute rows", ffi::allgather);
  refused([](Program& p) { p.texts["rows"] = "2"; }, "attribute rows", ffi::allgather);
  refused([](Program& p) { p.arrays["rows"] = {-2}; }, "attribute rows", ffi::allgather);
  refused([](Program& p) { p.arrays["rows"] = {2}, p.outputs[0].dtype = ffi::kS64; }, "output.bytes()", ffi::allgather);
  refused([](Program& p) { p.arrays["rows"] = {2}, p.inputs[0].dimensions = 0; }, "needs at least one dimension",
          ffi::allgather);

  std::vector<int32_t> rows{5};
  const auto with_rows = [&](auto&& change) {
    return [&](Program& p) {
      p.add(p.outputs, ffi::kS32, rows, {1});
      p.arrays = {{"splits", {2}}, {"received", {2}}};
      change(p);
    };
  };
  refused(with_rows([](Program& p) { p.outputs.pop_back(); }), "call.outputs().size() == 2", ffi::alltoall);
  refused(with_rows([](Program& p) { p.outputs[1].dtype = ffi::kU8; }), "rows.dtype", ffi::alltoall);
  refused(with_rows([](Program& p) { p.arrays["received"] = {1, 1}; }), "received.size()", ffi::alltoall);
  refused(with_rows([](Program& p) { p.arrays["received"] = {1}; }), "3 ringdp.MismatchError: ", ffi::alltoall);
  refused(with_rows([](Program& p) { p.arrays["splits"] = {3}; }), "splits add up to 3 rows, the tensor has 2",
          ffi::alltoall);
  refused(with_rows([](Program& p) { p.arrays["splits"] = {1, 1}; }), "splits has 2 entries for 1", ffi::alltoall);
  CHECK(rows[0] == 5);

  refused([](Program& p) { p.inputs[0].dimensions = 0; }, "!input.shape.empty()", ffi::reducescatter);
  refused([](Program& p) { p.outputs[0].dtype = ffi::kS32; }, "input.dtype == output.dtype", ffi::reducescatter);
  refused([](Program& p) { p.shapes[1][0] = 1; }, "output.shape == own", ffi::reducescatter);
}

// Sums that wrap around would pass for the right ones, and rows of others' memory would be sent.
TEST(xla_calls_with_splits_that_wrap_around) {
  const TwoRanks ranks;
  std::vector<float> x{1, 2}, y{8, 9};
  std::vector<int32_t> rows{5, 5};
  Program program = program_of(x, y);
  program.add(program.outputs, ffi::kS32, rows, {2});
  program.arrays = {{"splits", {INT64_MIN + 1, INT64_MIN + 1}}, {"received", {1, 1}}};
  std::string said = program.call(ffi::alltoall);
  CHECK(has(said, "attribute splits"), said);
  Submission s;
  s.kind = OpKind::alltoall;
  s.input = x.data();
  s.shape = {2};
  s.splits = {(uint64_t{1} << 63) + 1, (uint64_t{1} << 63) + 1};
  said = error_of([&] { ranks.here->submit(std::move(s)); });
  CHECK(has(said, "the tensor has 2"), said);
}

TEST(xla_calls_that_no_memory_is_left_for) {
  const OneRank rank;
  std::vector<float> x{1, 2}, y{8, 9};
  Program program = program_of(x, y);
  program.shapes[0][0] = program.shapes[1][0] = int64_t{1} << 47;
  const std::string said = program.call(ffi::allreduce);
  CHECK(has(said, "13 ringdp.RingdpError: no memory is left for 562949953421312 bytes"), said);
  CHECK((y == std::vector<float>{8, 9}));
}

// In memory that both ranks share, and in the letters between them.
TEST(xla_calls_exchange_with_another_rank) {
  const TwoRanks ranks({}, {0, 0});
  for (const size_t count : {3, 1 << 17}) {
    std::vector<float> x(count), other(count), y(count, 77), sum(count);
    for (size_t i = 0; i < count; ++i) x[i] = float(i % 13), other[i] = float(i % 7 + 1), sum[i] = x[i] + other[i];
    const auto handle = allreduce_of(*ranks.other, "x", other);
    CHECK(program_of(x, y).call(ffi::allreduce) == "");
    CHECK(y == sum);
    CHECK(ranks.other->wait(*handle, Deadline::in(Seconds(60)), nullptr));
    CHECK(other == sum);
  }
}

TEST(xla_calls_that_fail) {
  Options options;
  options.timeout = 0.3;
  std::vector<float> x{1, 2}, y{8, 9}, longer{1, 2, 3};
  const auto fails = [&](const std::string& name, const std::string& why, const std::string& layout = "") {
    Program program = program_of(x, y);
    program.texts["name"] = name;
    program.texts["layout"] = layout;
    const GivesUp given_up;
    const std::string said = program.call(ffi::allreduce);
    CHECK(said.rfind(why, 0) == 0, "wanted: ", why, "; said: ", said);
    CHECK((y == std::vector<float>{8, 9}), why);
  };
  TwoRanks ranks(options);
  fails("alone", "4 ringdp.DeadlineError: rank 0: allreduce 'alone'");
  std::vector<std::shared_ptr<Handle>> theirs{allreduce_of(*ranks.other, "x", longer)};
  fails("x", "3 ringdp.MismatchError: ");
  Submission grouped;
  grouped.name = "x.0";
  grouped.input = grouped.output = longer.data();
  grouped.shape = {2};
  theirs.push_back(ranks.other->submit_group({grouped}, "other: float32[2]")[0]);
  fails("x", "3 ringdp.MismatchError: ", "mine: float32[2]");
  {
    const auto mine = allreduce_of(*ranks.here, "x", longer);
    fails("x", "3 ringdp.DuplicateNameError: ");
    theirs.push_back(allreduce_of(*ranks.other, "x", longer));
    CHECK(ranks.here->wait(*mine, Deadline::in(Seconds(60)), nullptr));
  }
  for (const auto& handle : theirs) CHECK(ranks.other->wait(*handle, Deadline::in(Seconds(60)), nullptr));
  ranks.other->begin_shutdown();
  fails("x", "10 ringdp.PeerError: ");
  ranks.here->begin_shutdown();
  fails("x", "9 ringdp.NotInitializedError: ringdp was shut down");
}

// What others may still read, and write, stays where it is when the call is over.
TEST(xla_calls_that_fail_under_way_leave_their_memory) {
  constexpr size_t kCount = 1 << 16;
  constexpr double kLong = 60;  // seconds
  struct Kept {                 // for ever, as memory is kept that a transport may still use
    TransportFaults of_data, of_control, of_other;
    std::shared_ptr<Engine> here;
    std::unique_ptr<Engine> other;
  };
  static Kept& kept = *new Kept;
  const auto data = make_local_hub(2, 0, {}), control = make_local_hub(2, 0, {});
  const auto engine_of = [](std::unique_ptr<Transport> of_data, std::unique_ptr<Transport> of_control) {
    Options options;
    options.timeout = kLong;
    return std::make_unique<Engine>(
        options, 1, Membership{{0, 1}, std::move(of_data), std::move(of_control), placement_on({0, 1}), {}, {}});
  };
  kept.here = engine_of(std::make_unique<Failing>(make_local_transport(data, 0), kept.of_data),
                        std::make_unique<Failing>(make_local_transport(control, 0), kept.of_control));
  kept.other = engine_of(std::make_unique<Failing>(make_local_transport(data, 1), kept.of_other),
                         make_local_transport(control, 1));
  kept.of_other.swallows = true;  // rank 1 agrees, and then the test stands at the other end of rank 0's messages
  set_current(kept.here);

  std::vector<float> x(kCount, 3), y(kCount, 77), theirs(kCount, 4);
  allreduce_of(*kept.other, "x", theirs);
  std::string said;
  std::thread program([&] {
    const GivesUp given_up;
    said = program_of(x, y).call(ffi::allreduce);
  });
  const auto end = make_local_transport(data, 1);
  const Deadline deadline = Deadline::in(Seconds(kLong));
  int tag = -1;
  size_t bytes = 0;
  const auto arrived = [&] {
    for (tag = 0; tag <= end->max_tag(); ++tag)
      if (end->arrived(tag, &bytes) == 0 && bytes > 4096) return true;
    return false;
  };
  while (!arrived() && !deadline.passed()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  kept.of_control.fails = true;
  program.join();
  CHECK(has(said, "10 ringdp.PeerError: "), said);
  CHECK(y == std::vector<float>(kCount, 77) && x == std::vector<float>(kCount, 3));

  std::vector<float> got(bytes / sizeof(float)), sent(bytes / sizeof(float), 5);
  Request receive = end->receive(0, tag, got.data(), bytes), send = end->send(0, tag, sent.data(), bytes);
  CHECK(end->test(receive, nullptr) && got == std::vector<float>(got.size(), 3), "what is read is not what was sent");
  CHECK(end->test(send, nullptr) && y == std::vector<float>(kCount, 77), "XLA's memory was written after the call");
  set_current(nullptr);
  kept.here->abandon();
  kept.other->abandon();
}

// XLA runs programs on threads of its own, and some may still run while the process shuts ringdp down.
TEST(xla_calls_of_several_threads_while_the_engine_goes) {
  constexpr int kThreads = 3;
  std::vector<std::string> ends(kThreads);
  {
    const OneRank rank;
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t)
      threads.emplace_back([&, t] {
        std::vector<float> x{1, 2}, y(2);
        Program program = program_of(x, y);
        program.texts["name"] = "thread " + std::to_string(t);
        for (int i = 0; i < 20000 && ends[t].empty(); ++i) {
          ends[t] = program.call(ffi::allreduce);
          if (ends[t].empty() && y != x) ends[t] = "wrong";
        }
      });
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    set_current(nullptr);
    for (std::thread& thread : threads) thread.join();
  }
  for (const std::string& end : ends) CHECK(has(end, "9 ringdp.NotInitializedError: "), end);
}
