// The element types and reduce operations that ringdp knows, with their wire numbers.
//
// The numbers travel in headers between ranks and from Python: never renumber, only append.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ringdp {

enum class Dtype : uint8_t {
  boolean = 0,
  uint8 = 1,
  int8 = 2,
  int16 = 3,
  int32 = 4,
  int64 = 5,
  float16 = 6,
  bfloat16 = 7,
  float32 = 8,
  float64 = 9,
  float8_e4m3fn = 10,
  float8_e5m2 = 11,
};
inline constexpr int kDtypes = 12;

enum class ReduceOp : uint8_t { average = 0, sum = 1, min = 2, max = 3, product = 4, adasum = 5 };
inline constexpr int kReduceOps = 6;
inline constexpr int kElementwiseOps = 5;  // the first ones, which look at each element by itself

constexpr size_t size_of(Dtype t) {
  constexpr size_t sizes[kDtypes] = {1, 1, 1, 2, 4, 8, 2, 2, 4, 8, 1, 1};
  return sizes[static_cast<int>(t)];
}

constexpr const char* name_of(Dtype t) {
  constexpr const char* names[kDtypes] = {"bool",    "uint8",    "int8",    "int16",   "int32",         "int64",
                                          "float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"};
  return names[static_cast<int>(t)];
}

constexpr const char* name_of(ReduceOp op) {
  constexpr const char* names[kReduceOps] = {"Average", "Sum", "Min", "Max", "Product", "Adasum"};
  return names[static_cast<int>(op)];
}

constexpr bool is_float(Dtype t) { return t >= Dtype::float16; }
constexpr bool is_float8(Dtype t) { return t == Dtype::float8_e4m3fn || t == Dtype::float8_e5m2; }

}  // namespace ringdp
