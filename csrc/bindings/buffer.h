// A Python object's memory by the buffer protocol: a fraction of a microsecond, where NumPy's own attributes take several.
#pragma once

#include <nanobind/nanobind.h>

#include <optional>
#include <vector>

#include "base/dtype.h"

namespace ringdp {

class BufferView {
 public:
  BufferView(nanobind::handle object, bool written) {
    const int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (written ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(object.ptr(), &view_, flags) != 0) {
      PyErr_Clear();
      return;
    }
    held_ = true;
    dtype_ = dtype_of(view_.format);
  }
  ~BufferView() {
    if (held_) PyBuffer_Release(&view_);
  }
  BufferView(const BufferView&) = delete;
  BufferView& operator=(const BufferView&) = delete;

  bool usable() const { return held_ && dtype_.has_value(); }
  void* data() const { return view_.buf; }
  Dtype dtype() const { return *dtype_; }
  std::vector<uint64_t> shape() const { return {view_.shape, view_.shape + view_.ndim}; }

 private:
  // One letter, so of native byte order (module struct).
  static std::optional<Dtype> dtype_of(const char* format) {
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

  Py_buffer view_{};
  bool held_ = false;
  std::optional<Dtype> dtype_;
};

}  // namespace ringdp
