#include "xla/handlers.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "engine/current.h"
#include "xla/block.h"
#include "xla/call.h"
#include "xla/flat.h"
#include "xla/group.h"

namespace ringdp::xla {

namespace {

int32_t code_of(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::usage:
    case ErrorKind::mismatch:
    case ErrorKind::duplicate:
      return kInvalidArgument;
    case ErrorKind::deadline:
      return kDeadlineExceeded;
    case ErrorKind::peer:
      return kAborted;
    case ErrorKind::transport:
      return kUnavailable;
    case ErrorKind::checksum:
      return kDataLoss;
    case ErrorKind::closed:
      return kFailedPrecondition;
    default:
      return kInternal;
  }
}

// Before it calls a handler first, XLA asks for which version that was made.
bool answers(const Frame& frame) {
  constexpr size_t kLeast = offsetof(Metadata, traits) + sizeof(Metadata::traits);
  for (const Extension* e = frame.extensions; e != nullptr; e = e->next) {
    if (e->type != kMetadata || e->struct_size < sizeof(MetadataExtension)) continue;
    Metadata* metadata = reinterpret_cast<const MetadataExtension*>(e)->metadata;
    if (metadata == nullptr || metadata->struct_size < kLeast) return true;  // XLA finds no version, and refuses
    metadata->version.major = kMajor;
    metadata->version.minor = kMinor;
    metadata->traits = 0;
    return true;
  }
  return false;
}

ErrorOfXla* error_of(const Frame& frame, int32_t code, const std::string& text) {
  MakeError made{sizeof(MakeError), nullptr, text.c_str(), code};
  return frame.functions->make_error(&made);
}

// The one place where an error of ours becomes one of XLA's.
template <class Act>
ErrorOfXla* handle(Frame* frame, const Act& act) {
  if (answers(*frame)) return nullptr;
  try {
    act(Call(*frame));
    return nullptr;
  } catch (const Error& error) {
    return error_of(*frame, code_of(error.kind()),
                    std::string("ringdp.") + python_class(error.kind()) + ": " + error.what());
  } catch (const std::exception& error) {
    return error_of(*frame, kInternal, std::string("ringdp.RingdpError: ") + error.what());
  }
}

// One operation of a call: what all have in common.
class Operation {
 public:
  Operation(OpKind kind, const Call& call)
      : engine_(current_engine()),
        kind_(kind),
        name_(call.text("name")),
        set_(static_cast<int>(call.integer("process_set"))) {
    place_ = engine_->place_in(set_);
    const int64_t ranks = call.integer("ranks"), rank = call.integer("rank");
    if ((ranks >= 0 && ranks != place_.ranks) || (rank >= 0 && rank != place_.number))
      fail(ErrorKind::usage, "rank ", engine_->rank(), ": ", label(), " was compiled for rank ", rank, " of ", ranks,
           " ranks, and this is now rank ", place_.number, " of ", place_.ranks,
           ": call jax.clear_caches() after ringdp.init() with other ranks");
  }

  Engine& engine() const { return *engine_; }
  Engine::Place place() const { return place_; }
  std::string label() const { return std::string(name_of(kind_)) + " '" + name_ + "'"; }

  Submission submission() const {
    Submission s;
    s.kind = kind_;
    s.name = name_;
    s.process_set = set_;
    return s;
  }
  Submission on(const Tensor& like, const Block& from, const Block& to) const {
    Submission s = submission();
    s.input = from.data();
    s.output = to.data();
    s.dtype = like.dtype;
    s.shape = like.shape;
    return s;
  }

  // Until it is done.
  Result run(Member one) const {
    std::vector<Member> alone;
    alone.push_back(std::move(one));
    return std::move(run_all(std::move(alone), "")[0]->result());
  }
  // The same of several, or of one without a layout.
  std::vector<std::shared_ptr<Handle>> run_all(std::vector<Member> members, const std::string& layout) const {
    if (!layout.empty()) return exchange_group(*engine_, std::move(members), layout, nullptr);
    RINGDP_CHECK(members.size() == 1);
    const Engine::Caller caller(*engine_);
    const auto handle = engine_->call(std::move(members[0].submission));
    wait_for(*engine_, {handle}, members[0].blocks, nullptr);
    (void)handle->result();
    return {handle};
  }

 private:
  const std::shared_ptr<Engine> engine_;
  const OpKind kind_;
  const std::string name_;
  const int set_;
  Engine::Place place_{};
};

void set_reduction(Submission& s, const Call& call) {
  const int64_t op = call.integer("op");
  RINGDP_CHECK(op >= 0 && op < kReduceOps);
  s.op = static_cast<ReduceOp>(op);
  s.prescale = call.number("prescale");
  s.postscale = call.number("postscale");
}

std::string text_of(const std::vector<uint64_t>& rows) {
  std::string text;
  for (const uint64_t n : rows) text += (text.empty() ? "" : ", ") + std::to_string(n);
  return text;
}

// The operation's own output, whose size only the ranks together know, into the program's, which was compiled before.
void take(const Operation& operation, const Result& result, const std::vector<uint64_t>& rows, const char* remedy,
          const Tensor& output) {
  if (result.rows != rows)
    fail(ErrorKind::mismatch, "rank ", operation.engine().rank(), ": ", operation.label(), ": rows ",
         text_of(result.rows), " have come from the ranks, and the program was compiled for ", text_of(rows), ": ",
         remedy);
  RINGDP_CHECK(result.output_bytes == output.bytes());
  give(output, result.output.get());
}

// An operation whose results look as its inputs do: one tensor by itself, or many as one.
void in_place(const Operation& operation, const Call& call, Submission how) {
  if (const std::string layout = call.text("layout"); !layout.empty())
    return exchange_flat(operation.engine(), how, call.inputs(), call.outputs(), layout, nullptr);
  const Tensor &input = call.input(), &output = call.output();
  RINGDP_CHECK(input.shape == output.shape && input.dtype == output.dtype);
  Block block(operation.engine(), input.bytes());
  fill(block, input);
  how.input = how.output = block.data();
  how.dtype = input.dtype;
  how.shape = input.shape;
  operation.run({std::move(how), {&block}});
  give(output, block.data());
}

}  // namespace

ErrorOfXla* allreduce(Frame* frame) {
  return handle(frame, [](const Call& call) {
    const Operation operation(OpKind::allreduce, call);
    Submission s = operation.submission();
    set_reduction(s, call);
    in_place(operation, call, std::move(s));
  });
}

ErrorOfXla* allgather(Frame* frame) {
  return handle(frame, [](const Call& call) {
    const Operation operation(OpKind::allgather, call);
    const std::vector<uint64_t> rows = call.integers("rows");
    const auto ranks = static_cast<std::ptrdiff_t>(operation.place().ranks);
    RINGDP_CHECK(call.inputs().size() == call.outputs().size());
    RINGDP_CHECK(rows.size() == call.inputs().size() * static_cast<size_t>(ranks));
    std::vector<std::unique_ptr<Block>> blocks;
    std::vector<Member> members;
    for (const Tensor& input : call.inputs()) {
      Block& block = *blocks.emplace_back(std::make_unique<Block>(operation.engine(), input.bytes()));
      fill(block, input);
      members.push_back({operation.on(input, block, block), {&block}});
      members.back().submission.output = nullptr;
    }
    const auto handles = operation.run_all(std::move(members), call.text("layout"));
    for (size_t i = 0; i < handles.size(); ++i) {
      const auto begin = rows.begin() + static_cast<std::ptrdiff_t>(i) * ranks;
      take(operation, handles[i]->result(), {begin, begin + ranks},
           "give it rows=, those of each rank, where ranks have different numbers of them", call.outputs()[i]);
    }
  });
}

ErrorOfXla* broadcast(Frame* frame) {
  return handle(frame, [](const Call& call) {
    const Operation operation(OpKind::broadcast, call);
    Submission s = operation.submission();
    s.root = static_cast<int>(call.integer("root"));
    in_place(operation, call, std::move(s));
  });
}

ErrorOfXla* alltoall(Frame* frame) {
  return handle(frame, [](const Call& call) {
    const Operation operation(OpKind::alltoall, call);
    Block block(operation.engine(), call.input().bytes());
    fill(block, call.input());
    Submission s = operation.on(call.input(), block, block);
    s.output = nullptr;
    s.splits = call.integers("splits");
    RINGDP_CHECK(call.outputs().size() == 2);
    const Tensor &output = call.outputs()[0], &rows = call.outputs()[1];
    const std::vector<uint64_t> received = call.integers("received");
    RINGDP_CHECK(rows.dtype == Dtype::int32 && rows.count() == received.size());
    take(operation, operation.run({std::move(s), {&block}}), received,
         "give it received_splits=, the rows that come from each rank", output);
    auto* to = reinterpret_cast<int32_t*>(rows.data);
    for (const uint64_t n : received) *to++ = static_cast<int32_t>(n);
  });
}

ErrorOfXla* reducescatter(Frame* frame) {
  return handle(frame, [](const Call& call) {
    const Operation operation(OpKind::reducescatter, call);
    const Engine::Place place = operation.place();
    RINGDP_CHECK(call.inputs().size() == call.outputs().size());
    std::vector<std::unique_ptr<Block>> from, to;
    std::vector<Member> members;
    for (size_t i = 0; i < call.inputs().size(); ++i) {
      const Tensor &input = call.inputs()[i], &output = call.outputs()[i];
      RINGDP_CHECK(!input.shape.empty() && input.dtype == output.dtype);
      const uint64_t rows = input.shape[0] / place.ranks + (uint64_t(place.number) < input.shape[0] % place.ranks);
      std::vector<uint64_t> own = input.shape;
      own[0] = rows;
      RINGDP_CHECK(output.shape == own);
      from.push_back(std::make_unique<Block>(operation.engine(), input.bytes()));
      to.push_back(std::make_unique<Block>(operation.engine(), output.bytes()));
      fill(*from.back(), input);
      members.push_back({operation.on(input, *from.back(), *to.back()), {from.back().get(), to.back().get()}});
      set_reduction(members.back().submission, call);
    }
    operation.run_all(std::move(members), call.text("layout"));
    for (size_t i = 0; i < to.size(); ++i) give(call.outputs()[i], to[i]->data());
  });
}

ErrorOfXla* barrier(Frame* frame) {
  return handle(frame, [](const Call& call) {
    const Operation operation(OpKind::barrier, call);
    Submission s = operation.submission();
    s.dtype = Dtype::uint8;
    operation.run({std::move(s), {}});
  });
}

}  // namespace ringdp::xla
