#include "xla/call.h"

#include <cstring>
#include <functional>
#include <numeric>
#include <string_view>

#include "base/check.h"
#include "submit/submission.h"

namespace ringdp::xla {

namespace {

// A struct that was made by a newer XLA may be longer, never shorter than the part that we know.
template <class T>
const T& known(const T& given, size_t size, const char* what) {
  if (given.struct_size < size)
    fail(ErrorKind::internal, "XLA's ", what, " has ", given.struct_size, " bytes, and ringdp needs ", size,
         ": this release of JAX does not fit; please report its version");
  return given;
}

Dtype dtype_of(int32_t type) {
  switch (type) {
    case kPred:
      return Dtype::boolean;
    case kU8:
      return Dtype::uint8;
    case kS8:
      return Dtype::int8;
    case kS16:
      return Dtype::int16;
    case kS32:
      return Dtype::int32;
    case kS64:
      return Dtype::int64;
    case kF16:
      return Dtype::float16;
    case kBF16:
      return Dtype::bfloat16;
    case kF32:
      return Dtype::float32;
    case kF64:
      return Dtype::float64;
    case kF8E4M3FN:
      return Dtype::float8_e4m3fn;
    case kF8E5M2:
      return Dtype::float8_e5m2;
    default:
      fail(ErrorKind::usage, "ringdp cannot exchange XLA's dtype ", type);
  }
}

std::vector<Tensor> tensors_of(const Buffers& buffers) {
  std::vector<Tensor> tensors;
  RINGDP_CHECK(buffers.size >= 0);
  for (int64_t i = 0; i < buffers.size; ++i) {
    RINGDP_CHECK(buffers.types[i] == kBuffer);
    const auto& buffer = known(*static_cast<const Buffer*>(buffers.buffers[i]), sizeof(Buffer), "buffer");
    if (buffer.dtype == kToken) continue;
    Tensor tensor{dtype_of(buffer.dtype), static_cast<std::byte*>(buffer.data), {}};
    uint64_t bytes = size_of(tensor.dtype);
    for (int64_t d = 0; d < buffer.dimensions; ++d) {
      RINGDP_CHECK(buffer.shape[d] >= 0 && static_cast<uint64_t>(buffer.shape[d]) <= kMostBytes / bytes);
      tensor.shape.push_back(static_cast<uint64_t>(buffer.shape[d]));
      bytes *= std::max<uint64_t>(1, tensor.shape.back());
    }
    RINGDP_CHECK(tensor.data != nullptr || tensor.count() == 0);
    tensors.push_back(std::move(tensor));
  }
  return tensors;
}

}  // namespace

void check_frame(const Frame& frame) {
  known(frame, offsetof(Frame, attributes) + sizeof frame.attributes, "call frame");
  known(frame.arguments, sizeof frame.arguments, "list of arguments");
  known(frame.results, sizeof frame.results, "list of results");
  known(frame.attributes, sizeof frame.attributes, "list of attributes");
  RINGDP_CHECK(frame.stage == kExecute);
}

uint64_t Tensor::count() const { return std::accumulate(shape.begin(), shape.end(), uint64_t{1}, std::multiplies<>()); }

Call::Call(const Frame& frame) : frame_(frame) {
  check_frame(frame);
  inputs_ = tensors_of(frame.arguments);
  outputs_ = tensors_of(frame.results);
}

const Tensor& Call::input() const {
  RINGDP_CHECK(inputs_.size() == 1);
  return inputs_[0];
}

const Tensor& Call::output() const {
  RINGDP_CHECK(outputs_.size() == 1);
  return outputs_[0];
}

const void* Call::attribute(const char* name, int32_t type) const {
  const Attributes& all = frame_.attributes;
  for (int64_t i = 0; i < all.size; ++i) {
    if (std::string_view(all.names[i]->data, all.names[i]->size) != name) continue;
    RINGDP_CHECK(all.types[i] == type, "attribute ", name);
    return all.values[i];
  }
  fail(ErrorKind::internal, "a compiled program calls ringdp without the attribute ", name);
}

int64_t Call::integer(const char* name) const {
  const auto& scalar = *static_cast<const Scalar*>(attribute(name, kScalar));
  RINGDP_CHECK(scalar.dtype == kS64, "attribute ", name);
  return *static_cast<const int64_t*>(scalar.value);
}

double Call::number(const char* name) const {
  const auto& scalar = *static_cast<const Scalar*>(attribute(name, kScalar));
  RINGDP_CHECK(scalar.dtype == kF64, "attribute ", name);
  return *static_cast<const double*>(scalar.value);
}

std::string Call::text(const char* name) const {
  const auto& bytes = *static_cast<const Bytes*>(attribute(name, kString));
  return {bytes.data, bytes.size};
}

std::vector<uint64_t> Call::integers(const char* name) const {
  const auto& array = *static_cast<const Array*>(attribute(name, kArray));
  RINGDP_CHECK(array.dtype == kS64, "attribute ", name);
  const auto* values = static_cast<const int64_t*>(array.data);
  for (size_t i = 0; i < array.size; ++i) RINGDP_CHECK(values[i] >= 0, "attribute ", name);
  return {values, values + array.size};
}

}  // namespace ringdp::xla
