// What compiled programs of XLA call, by frames as XLA would make them: exchanges of one rank with itself, and everything
// that a frame may lack.
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "engine/current.h"
#include "engine/local_ranks.h"
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
  ffi::Frame frame{sizeof(ffi::Frame), nullptr, &functions, nullptr, ffi::kExecute, {}, {}, {}};

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
    const auto attribute = [&](const std::string& name, int32_t kind, void* value) {
      names.push_back({name.data(), name.size()}), kinds.push_back(kind), values.push_back(value);
    };
    for (auto& [name, value] : integers)
      scalars.push_back({ffi::kS64, &value}), attribute(name, ffi::kScalar, &scalars.back());
    for (auto& [name, value] : numbers)
      scalars.push_back({ffi::kF64, &value}), attribute(name, ffi::kScalar, &scalars.back());
    for (auto& [name, value] : texts)
      spans.push_back({value.data(), value.size()}), attribute(name, ffi::kString, &spans.back());
    for (auto& [name, value] : arrays)
      spaces.push_back({ffi::kS64, value.size(), value.data()}), attribute(name, ffi::kArray, &spaces.back());
    std::vector<ffi::Bytes*> pointers;
    for (ffi::Bytes& name : names) pointers.push_back(&name);
    std::vector<int32_t> buffers(16, ffi::kBuffer);
    std::vector<void*> in, out;
    for (ffi::Buffer& buffer : inputs) in.push_back(&buffer);
    for (ffi::Buffer& buffer : outputs) out.push_back(&buffer);
    if (frame.arguments.struct_size == 0)
      frame.arguments = {sizeof frame.arguments, nullptr, int64_t(in.size()), buffers.data(), in.data()};
    frame.results = {sizeof frame.results, nullptr, int64_t(out.size()), buffers.data(), out.data()};
    frame.attributes = {sizeof frame.attributes, nullptr,      int64_t(names.size()), kinds.data(),
                        pointers.data(),         values.data()};
    std::unique_ptr<MadeError> error(reinterpret_cast<MadeError*>(handler(&frame)));
    frame.arguments.struct_size = 0;
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

TEST(xla_calls_that_cannot_be) {
  std::vector<float> x{1, 2}, y{8, 9};
  const auto refused = [&](auto&& change, const std::string& why) {
    Program program;
    program.add(program.inputs, ffi::kF32, x, {2});
    program.add(program.outputs, ffi::kF32, y, {2});
    change(program);
    const std::string said = program.call(ffi::allreduce);
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
}
