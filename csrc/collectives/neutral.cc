#include "collectives/neutral.h"

#include <algorithm>
#include <limits>

#include "base/error.h"

namespace ringdp {

namespace {

template <class T>
void fill(void* data, uint64_t count, ReduceOp op, T one, T lowest, T highest) {
  T value{};
  if (op == ReduceOp::min) value = highest;
  if (op == ReduceOp::max) value = lowest;
  if (op == ReduceOp::product) value = one;
  std::fill_n(static_cast<T*>(data), count, value);
}

template <class T>
void fill(void* data, uint64_t count, ReduceOp op) {
  using Limits = std::numeric_limits<T>;
  if constexpr (Limits::has_infinity)
    fill<T>(data, count, op, 1, -Limits::infinity(), Limits::infinity());
  else
    fill<T>(data, count, op, 1, Limits::lowest(), Limits::max());
}

}  // namespace

void fill_neutral(void* data, uint64_t count, Dtype dtype, ReduceOp op) {
  switch (dtype) {
    case Dtype::boolean:
      return fill<uint8_t>(data, count, op, 1, 0, 1);
    case Dtype::uint8:
      return fill<uint8_t>(data, count, op);
    case Dtype::int8:
      return fill<int8_t>(data, count, op);
    case Dtype::int16:
      return fill<int16_t>(data, count, op);
    case Dtype::int32:
      return fill<int32_t>(data, count, op);
    case Dtype::int64:
      return fill<int64_t>(data, count, op);
    case Dtype::float16:
      return fill<uint16_t>(data, count, op, 0x3c00, 0xfc00, 0x7c00);
    case Dtype::bfloat16:
      return fill<uint16_t>(data, count, op, 0x3f80, 0xff80, 0x7f80);
    case Dtype::float32:
      return fill<float>(data, count, op);
    case Dtype::float64:
      return fill<double>(data, count, op);
    case Dtype::float8_e4m3fn:  // which has no infinity: its ends
      return fill<uint8_t>(data, count, op, 0x38, 0xfe, 0x7e);
    case Dtype::float8_e5m2:
      return fill<uint8_t>(data, count, op, 0x3c, 0xfc, 0x7c);
  }
  fail(ErrorKind::internal, "no dtype ", int(dtype));
}

}  // namespace ringdp
