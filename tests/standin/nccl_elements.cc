#include "nccl_elements.h"

#include <cmath>
#include <cstring>
#include <map>
#include <type_traits>
#include <vector>

#include "kernels/kernels.h"
#include "misuse.h"

namespace standin {

using namespace ringdp;
using namespace ringdp::nccl;

namespace {

const std::map<DataType, Dtype>& known() {
  static const std::map<DataType, Dtype> types = {
      {kInt8, Dtype::int8},       {kUint8, Dtype::uint8},     {kInt32, Dtype::int32},     {kInt64, Dtype::int64},
      {kFloat16, Dtype::float16}, {kFloat32, Dtype::float32}, {kFloat64, Dtype::float64}, {kBfloat16, Dtype::bfloat16}};
  return types;
}

// act(pointer of the type of the integers)
template <class Act>
void with_integers(Dtype dtype, void* data, const Act& act) {
  switch (dtype) {
    case Dtype::int8:
      return act(static_cast<int8_t*>(data));
    case Dtype::uint8:
      return act(static_cast<uint8_t*>(data));
    case Dtype::int32:
      return act(static_cast<int32_t*>(data));
    case Dtype::int64:
      return act(static_cast<int64_t*>(data));
    default:
      misuse(std::string(name_of(dtype)) + " is none of NCCL's integers");
  }
}

double value_of(Dtype dtype, uint64_t bytes) {
  double value;
  float narrow;
  if (dtype == Dtype::float64) return std::memcpy(&value, &bytes, sizeof value), value;
  if (dtype == Dtype::float32)
    std::memcpy(&narrow, &bytes, sizeof narrow);
  else
    kernels::widen(Dtype::float32, &narrow, dtype, &bytes, 1);
  return narrow;
}

// fminf and its like give the other one where one is a NaN.
template <class Float>
void keep(bool least, Float* to, const Float* with, uint64_t elements) {
  for (uint64_t i = 0; i < elements; ++i) to[i] = least ? std::fmin(to[i], with[i]) : std::fmax(to[i], with[i]);
}

void keep_floats(Dtype dtype, bool least, void* to, const void* with, uint64_t elements) {
  if (dtype == Dtype::float32) return keep(least, static_cast<float*>(to), static_cast<const float*>(with), elements);
  if (dtype == Dtype::float64) return keep(least, static_cast<double*>(to), static_cast<const double*>(with), elements);
  std::vector<float> a(elements), b(elements);
  kernels::widen(Dtype::float32, a.data(), dtype, to, elements);
  kernels::widen(Dtype::float32, b.data(), dtype, with, elements);
  keep(least, a.data(), b.data(), elements);
  kernels::narrow(dtype, to, Dtype::float32, a.data(), elements);
}

}  // namespace

bool is_known(DataType type) { return known().count(type) > 0; }
Dtype dtype_of(DataType type) { return known().at(type); }

uint64_t bytes_of(Dtype dtype, double factor) {
  uint64_t bytes = 0;
  const auto narrow = static_cast<float>(factor);
  if (dtype == Dtype::float64)
    std::memcpy(&bytes, &factor, sizeof factor);
  else if (dtype == Dtype::float32)
    std::memcpy(&bytes, &narrow, sizeof narrow);
  else
    kernels::narrow(dtype, &bytes, Dtype::float32, &narrow, 1);
  return bytes;
}

void premultiply(Dtype dtype, void* data, uint64_t factor, uint64_t elements) {
  if (is_float(dtype)) return kernels::scale(dtype, data, data, value_of(dtype, factor), elements);
  with_integers(dtype, data, [&](auto* values) {
    using Integer = std::remove_reference_t<decltype(*values)>;
    for (uint64_t i = 0; i < elements; ++i)
      values[i] = static_cast<Integer>(static_cast<uint64_t>(values[i]) * static_cast<uint64_t>(factor));
  });
}

void combine(Dtype dtype, Operation operation, void* to, const void* with, uint64_t elements) {
  const bool least = operation == kMin;
  if (is_float(dtype) && (least || operation == kMax)) return keep_floats(dtype, least, to, with, elements);
  static const std::map<Operation, ReduceOp> same = {
      {kProduct, ReduceOp::product}, {kMax, ReduceOp::max}, {kMin, ReduceOp::min}};
  const auto found = same.find(operation);
  kernels::reduce(dtype, found == same.end() ? ReduceOp::sum : found->second, to, to, with, elements);
}

void divide(Dtype dtype, void* data, int ranks, uint64_t elements) {
  with_integers(dtype, data, [&](auto* values) {
    using Integer = std::remove_reference_t<decltype(*values)>;
    for (uint64_t i = 0; i < elements; ++i) values[i] = static_cast<Integer>(values[i] / ranks);
  });
}

}  // namespace standin
