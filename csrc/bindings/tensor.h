// A Python object's memory, in a fraction of a microsecond, where the attributes of NumPy and torch take several: by the
// buffer protocol, or by the table of C functions that the type offers as `__dlpack_c_exchange_api__` (DLPack 1.3; torch
// has it from 2.10 on).
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "base/dtype.h"

namespace ringdp {

// `usable()` where the memory is dense, of a dtype that the core knows, on the CPU, and may be written if it must.
// The object must outlive it.
class PythonTensor {
 public:
  PythonTensor(nanobind::handle object, bool written) {
    usable_ = PyObject_CheckBuffer(object.ptr()) ? look_at_buffer(object, written) : look_at_exchange(object);
    PyErr_Clear();  // of what refused to be looked at
  }
  ~PythonTensor() {
    if (view_.obj != nullptr) PyBuffer_Release(&view_);
  }
  PythonTensor(const PythonTensor&) = delete;
  PythonTensor& operator=(const PythonTensor&) = delete;

  bool usable() const { return usable_; }
  void* data() const { return data_; }
  Dtype dtype() const { return *dtype_; }
  std::vector<uint64_t> shape() const { return {shape_, shape_ + dimensions_}; }

 private:
  bool look_at_buffer(nanobind::handle object, bool written);
  bool look_at_exchange(nanobind::handle object);

  Py_buffer view_{};
  bool usable_ = false;
  void* data_ = nullptr;
  std::optional<Dtype> dtype_;
  const int64_t* shape_ = nullptr;
  int dimensions_ = 0;
};

}  // namespace ringdp
