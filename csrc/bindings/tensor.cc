#include "bindings/tensor.h"

#include <nanobind/ndarray.h>

namespace nb = nanobind;

namespace ringdp {

namespace {

static_assert(sizeof(Py_ssize_t) == sizeof(int64_t), "shapes are read as they lie there");

// One letter, so of native byte order (module struct).
std::optional<Dtype> dtype_of(const char* format) {
  if (format == nullptr || format[0] == 0 || format[1] != 0) return std::nullopt;
  switch (format[0]) {
    case '?':
      return Dtype::boolean;
    case 'B':
      return Dtype::uint8;
    case 'b':
      return Dtype::int8;
    case 'h':
      return Dtype::int16;
    case 'i':
      return Dtype::int32;
    case 'l':
      return sizeof(long) == 8 ? Dtype::int64 : Dtype::int32;
    case 'q':
      return Dtype::int64;
    case 'e':
      return Dtype::float16;
    case 'f':
      return Dtype::float32;
    case 'd':
      return Dtype::float64;
    default:
      return std::nullopt;
  }
}

std::optional<Dtype> dtype_of(nb::dlpack::dtype type) {
  enum Code { kInt = 0, kUnsigned = 1, kFloat = 2, kBfloat = 4, kBool = 6, kE4m3fn = 10, kE5m2 = 12 };
  if (type.lanes != 1) return std::nullopt;
  switch (type.code << 8 | type.bits) {
    case kBool << 8 | 8:
      return Dtype::boolean;
    case kUnsigned << 8 | 8:
      return Dtype::uint8;
    case kInt << 8 | 8:
      return Dtype::int8;
    case kInt << 8 | 16:
      return Dtype::int16;
    case kInt << 8 | 32:
      return Dtype::int32;
    case kInt << 8 | 64:
      return Dtype::int64;
    case kFloat << 8 | 16:
      return Dtype::float16;
    case kBfloat << 8 | 16:
      return Dtype::bfloat16;
    case kFloat << 8 | 32:
      return Dtype::float32;
    case kFloat << 8 | 64:
      return Dtype::float64;
    case kE4m3fn << 8 | 8:
      return Dtype::float8_e4m3fn;
    case kE5m2 << 8 | 8:
      return Dtype::float8_e5m2;
    default:
      return std::nullopt;
  }
}

// The table, as DLPack 1.3 lays it out.
struct Exchange {
  uint32_t major, minor;
  void* previous;
  void* not_used[3];
  int (*describe)(void* object, nb::dlpack::dltensor* out);  // -1: a Python error is set
};

const Exchange* exchange_of(nb::handle object) {
  static PyObject* const name = PyUnicode_InternFromString("__dlpack_c_exchange_api__");
  PyObject* const capsule = PyObject_GetAttr(reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())), name);
  if (capsule == nullptr) return nullptr;
  const void* table = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
  Py_DECREF(capsule);  // the table lives as long as the process
  const auto* exchange = static_cast<const Exchange*>(table);
  return exchange != nullptr && exchange->major == 1 && exchange->describe != nullptr ? exchange : nullptr;
}

// torch notes the sign of some views, as of the imaginary part of a conjugated tensor, beside their memory; DLPack is silent
// about it.
bool is_negated(nb::handle object) {
  static PyObject* const name = PyUnicode_InternFromString("is_neg");
  const nb::object answer = nb::steal(PyObject_CallMethodNoArgs(object.ptr(), name));
  return answer.ptr() == Py_True;
}

// Stricter than need be where a dimension has one element.
bool is_dense(const nb::dlpack::dltensor& tensor) {
  int64_t wanted = 1;
  for (int d = tensor.ndim - 1; d >= 0; wanted *= tensor.shape[d--])
    if (tensor.strides == nullptr || tensor.strides[d] != wanted) return false;
  return tensor.data != nullptr || wanted == 0;
}

}  // namespace

bool PythonTensor::look_at_buffer(nb::handle object, bool written) {
  const int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (written ? PyBUF_WRITABLE : 0);
  if (PyObject_GetBuffer(object.ptr(), &view_, flags) != 0) return false;
  data_ = view_.buf;
  dtype_ = dtype_of(view_.format);
  shape_ = reinterpret_cast<const int64_t*>(view_.shape);
  dimensions_ = view_.ndim;
  return dtype_.has_value();
}

bool PythonTensor::look_at_exchange(nb::handle object) {
  const Exchange* exchange = exchange_of(object);
  nb::dlpack::dltensor tensor;
  if (exchange == nullptr || exchange->describe(object.ptr(), &tensor) != 0) return false;
  data_ = static_cast<char*>(tensor.data) + tensor.byte_offset;
  dtype_ = dtype_of(tensor.dtype);
  shape_ = tensor.shape;
  dimensions_ = tensor.ndim;
  return dtype_.has_value() && tensor.device.device_type == nb::device::cpu::value && is_dense(tensor) &&
         !is_negated(object);
}

}  // namespace ringdp
