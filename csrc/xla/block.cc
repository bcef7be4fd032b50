#include "xla/block.h"

#include <algorithm>
#include <new>

#include "base/huge_pages.h"
#include "kernels/copy.h"
#include "shared/host.h"

namespace ringdp::xla {

namespace {

constexpr std::align_val_t kAligned{64};

}  // namespace

Block::Block(const Engine& engine, size_t bytes) {
  if (bytes >= kSmall && engine.host()) {
    data_ = static_cast<std::byte*>(engine.host()->heap().allocate(bytes));
    if (data_ != nullptr) host_ = engine.host();
  }
  if (data_ != nullptr) return;
  data_ = static_cast<std::byte*>(::operator new(std::max<size_t>(1, bytes), kAligned, std::nothrow));
  if (data_ == nullptr) fail(ErrorKind::internal, "no memory is left for ", bytes, " bytes that are to be exchanged");
  expect_writes(data_, bytes);
}

Block::~Block() {
  if (given_up_) {
    if (host_) new std::shared_ptr<Host>(host_);  // nor is the heap that it lies in
    return;
  }
  if (host_)
    host_->heap().free(data_);
  else
    ::operator delete(data_, kAligned);
}

void wait_for(Engine& engine, const std::vector<std::shared_ptr<Handle>>& handles, const std::vector<Block*>& blocks,
              const std::function<void()>& look) {
  const auto give_up = [&] {
    for (Block* block : blocks) block->give_up();
  };
  try {
    for (const auto& handle : handles) engine.wait_for_end(*handle, look);
  } catch (...) {  // who looked wants no more, or the engine does not end it
    give_up();
    throw;
  }
  if (std::any_of(handles.begin(), handles.end(), [](const auto& handle) { return handle->memory_in_use(); }))
    give_up();
}

void give(const Tensor& to, const std::byte* from) {
  expect_writes(to.data, to.bytes());  // XLA has just allocated it
  copy_bytes(to.data, from, to.bytes());
}

void copy_bytes(std::byte* to, const std::byte* from, size_t bytes) {
  if (bytes > 0) kernels::copy(to, from, bytes);
}

}  // namespace ringdp::xla
