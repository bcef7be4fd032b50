#include "submit/submission.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iomanip>
#include <limits>
#include <numeric>
#include <sstream>

#include "agree/digest.h"
#include "base/check.h"
#include "base/error.h"

namespace ringdp {

namespace {

uint64_t bits_of(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// As few digits as give the same number back: two factors that differ must not read the same.
std::string text_of(double x) {
  for (int digits = 6;; ++digits) {
    std::ostringstream out;
    out << std::setprecision(digits) << x;
    if (digits == std::numeric_limits<double>::max_digits10 || std::strtod(out.str().c_str(), nullptr) == x)
      return out.str();
  }
}

template <class T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}
void put(std::string& out, const std::string& text) {
  put(out, uint64_t{text.size()});
  out += text;
}

// Reads back what put() has written.
class Reader {
 public:
  explicit Reader(const std::string& text) : text_(text) {}
  template <class T>
  T take() {
    T value{};
    RINGDP_CHECK(sizeof value <= left());
    std::memcpy(&value, text_.data() + at_, sizeof value);
    at_ += sizeof value;
    return value;
  }
  // One of so many, in a byte.
  template <class T>
  T one_of(int many) {
    const auto number = take<uint8_t>();
    RINGDP_CHECK(number < many);
    return static_cast<T>(number);
  }
  uint64_t length(uint64_t item) {  // of items that all are still to come
    const auto length = take<uint64_t>();
    RINGDP_CHECK(length <= left() / item);
    return length;
  }
  std::string text() {
    const uint64_t bytes = length(1);
    at_ += bytes;
    return text_.substr(at_ - bytes, bytes);
  }
  uint64_t left() const { return text_.size() - at_; }

 private:
  const std::string& text_;
  size_t at_ = 0;
};

bool reduces(OpKind kind) { return kind == OpKind::allreduce || kind == OpKind::reducescatter; }
bool has_16_bits(Dtype dtype) { return is_float(dtype) && size_of(dtype) == 2; }

}  // namespace

std::string Submission::bucket_name() const {
  const std::string name = "bucket " + std::to_string(bucket) + " of plan " + std::to_string(lane);
  return half == Half::all_gather ? "parameters of " + name : name;
}

std::string Submission::label() const {
  return lane >= 0 ? bucket_name() : std::string(name_of(kind)) + " '" + name + "'";
}

uint64_t Submission::count() const {
  return std::accumulate(shape.begin(), shape.end(), uint64_t{1}, std::multiplies<>());
}

uint64_t Submission::row_count() const {
  return shape.empty() ? 1 : std::accumulate(shape.begin() + 1, shape.end(), uint64_t{1}, std::multiplies<>());
}

// The first word says what follows: so what differs, differs in the words, too.
uint64_t Submission::signature() const {
  const bool scaled = prescale != 1 || postscale != 1;
  Digest digest;
  digest.add(uint64_t(kind) | uint64_t(dtype) << 8 | uint64_t(op) << 16 | uint64_t{scaled} << 24 |
             uint64_t{on_gpu} << 25 | uint64_t{in_graph} << 26 | uint64_t(uint32_t(root)) << 32);
  if (in_graph) digest.add(graph_number);
  if (scaled) digest.add(bits_of(prescale)).add(bits_of(postscale));
  if (kind == OpKind::open_plan) digest.add(text);
  if (group) digest.add(group->signature);
  if (half != Half::both) digest.add(uint64_t(half));
  for (size_t i = first_may_differ() ? 1 : 0; i < shape.size(); ++i) digest.add(shape[i]);
  return digest.value();
}

std::string Submission::encoded() const {
  std::string out;
  put(out, name);
  put(out, group ? group->signature : uint64_t{0});
  put(out, kind);
  put(out, dtype);
  put(out, on_gpu);
  put(out, in_graph);
  put(out, op);
  put(out, prescale);
  put(out, postscale);
  put(out, int32_t{root});
  put(out, uint64_t{shape.size()});
  for (const uint64_t length : shape) put(out, length);
  return out;
}

Submission Submission::decoded(const std::string& text) {
  Reader in(text);
  Submission s;
  s.name = in.text();
  if (const auto signature = in.take<uint64_t>()) {
    auto group = std::make_shared<Group>();
    group->signature = signature;
    s.group = std::move(group);
  }
  s.kind = in.one_of<OpKind>(kOpKinds);
  s.dtype = in.one_of<Dtype>(kDtypes);
  s.on_gpu = in.one_of<bool>(2);
  s.in_graph = in.one_of<bool>(2);
  s.op = in.one_of<ReduceOp>(kReduceOps);
  s.prescale = in.take<double>();
  s.postscale = in.take<double>();
  s.root = in.take<int32_t>();
  s.shape.resize(in.length(sizeof s.shape[0]));
  uint64_t bytes = size_of(s.dtype);
  for (uint64_t& length : s.shape) {
    length = in.take<uint64_t>();
    RINGDP_CHECK(length <= kMostBytes / bytes);
    bytes *= std::max<uint64_t>(1, length);
  }
  RINGDP_CHECK(in.left() == 0);
  return s;
}

std::string Submission::description() const {
  std::ostringstream out;
  if (kind == OpKind::open_plan) return text;
  if (group && !group->layout.empty()) out << group->layout << "\n";
  out << name_of(kind);
  if (kind == OpKind::barrier || kind == OpKind::join) return out.str();
  out << " of " << name_of(wide ? wide.dtype : dtype) << "[";
  for (size_t i = 0; i < shape.size(); ++i) out << (i ? ", " : "") << shape[i];
  out << "]";
  if (on_gpu) out << " on a GPU";
  if (in_graph && graph_number == 0) out << ", the first that is captured in a CUDA graph";
  if (in_graph && graph_number != 0) out << ", captured in CUDA graph " << std::hex << graph_number << std::dec;
  if (wide) out << " sent as " << name_of(dtype);
  if (reduces(kind)) {
    out << ", op " << name_of(op);
    if (prescale != 1) out << ", prescale_factor " << text_of(prescale);
    if (postscale != 1) out << ", postscale_factor " << text_of(postscale);
  }
  if (root >= 0) out << ", root_rank " << root;
  for (size_t i = 0; group && i < group->members.size(); ++i)
    out << "\ntensor " << i << " of its group: " << group->members[i].description();
  return out.str();
}

std::shared_ptr<const Group> group_of(const std::vector<Submission>& submissions, const std::string& layout) {
  auto group = std::make_shared<Group>();
  group->members = submissions;
  group->layout = layout;
  Digest digest;
  if (!layout.empty()) digest.add(layout);
  for (const Submission& member : submissions) digest.add(member.signature());
  group->signature = digest.value();
  return group;
}

void validate(const Submission& s, int rank, int size) {
  const auto refuse = [&](auto&&... parts) {
    fail(ErrorKind::usage, "rank ", rank, ": ", name_of(s.kind), s.name.empty() ? "" : " '" + s.name + "'", ": ",
         parts...);
  };
  if (s.kind == OpKind::broadcast && (s.root < 0 || s.root >= size))
    refuse("root_rank ", s.root, " is not one of the ", size, " ranks");
  if (reduces(s.kind) && s.dtype == Dtype::boolean) {
    if (s.op == ReduceOp::average) refuse("bool tensors have no average; use Max (or) or Min (and)");
    if (s.prescale != 1 || s.postscale != 1) refuse("bool tensors cannot be scaled");
  }
  if (reduces(s.kind) && s.op == ReduceOp::adasum) {
    if (s.kind != OpKind::allreduce || s.lane >= 0 || s.wide)
      refuse("only a whole tensor has an Adasum: use allreduce");
    if (!is_float(s.dtype)) refuse("only tensors of floats have an Adasum, not those of ", name_of(s.dtype));
    if (size & (size - 1)) refuse("Adasum needs a power of two of ranks, not ", size);
  }
  if (s.half != Half::both && (s.kind != OpKind::allreduce || s.lane < 0 || s.input != s.output))
    refuse("only the all-reduce of a bucket has halves");
  if ((s.kind == OpKind::reducescatter || s.first_may_differ()) && s.shape.empty())
    refuse("the tensor needs at least one dimension");
  if (s.on_gpu && s.wide) refuse("what lies on a GPU is not cast under way");
  if (s.wide) {
    if (s.kind != OpKind::allreduce || s.lane >= 0 || s.input != s.output)
      refuse("only an all-reduce in place is cast as it travels");
    if (!has_16_bits(s.dtype) || !is_float(s.wide.dtype) || has_16_bits(s.wide.dtype))
      refuse(name_of(s.wide.dtype), " cannot be sent as ", name_of(s.dtype));
  }
  if (s.kind == OpKind::alltoall) {
    if (s.splits.size() != size_t(size)) refuse("splits has ", s.splits.size(), " entries for ", size, " ranks");
    uint64_t rows = 0;  // never wrapping around: each part is read by the number that is given
    for (const uint64_t part : s.splits) rows += std::min(part, UINT64_MAX - rows);
    if (rows != s.shape[0]) refuse("splits add up to ", rows, " rows, the tensor has ", s.shape[0]);
  }
}

}  // namespace ringdp
