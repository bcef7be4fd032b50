// A call of a compiled program, read from XLA's frame: its tensors and attributes. What does not look as it must is refused
// before anything of it is used.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "xla/ffi.h"

namespace ringdp::xla {

// Throws ErrorKind::internal, with both versions, for one that lacks what we read.
void check_frame(const Frame& frame);

struct Tensor {
  Dtype dtype;
  std::byte* data;
  std::vector<uint64_t> shape;

  uint64_t count() const;
  uint64_t bytes() const { return count() * size_of(dtype); }
};

class Call {
 public:
  explicit Call(const Frame& frame);  // as check_frame(); throws ErrorKind::usage for a dtype that ringdp does not know

  // Without tokens.
  const std::vector<Tensor>& inputs() const { return inputs_; }
  const std::vector<Tensor>& outputs() const { return outputs_; }

  // The one that there must be. Throws ErrorKind::internal.
  const Tensor& input() const;
  const Tensor& output() const;

  // Attributes by name. Throw ErrorKind::internal where there is none, or one of another type.
  int64_t integer(const char* name) const;
  double number(const char* name) const;
  std::string text(const char* name) const;
  std::vector<uint64_t> integers(const char* name) const;

 private:
  const void* attribute(const char* name, int32_t type) const;

  const Frame& frame_;
  std::vector<Tensor> inputs_, outputs_;
};

}  // namespace ringdp::xla
