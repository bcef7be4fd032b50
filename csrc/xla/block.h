// Memory of ours in which a tensor of a compiled program is exchanged: what the ranks of the host share, where it is worth
// that and there is some.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <vector>

#include "engine/engine.h"
#include "xla/call.h"

namespace ringdp::xla {

class Block {
 public:
  Block(const Engine& engine, size_t bytes);
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  std::byte* data() const { return data_; }

  // An operation that has failed may still be sent from it, or received into it: it is never freed.
  void give_up() { given_up_ = true; }

 private:
  static constexpr size_t kSmall = 64 << 10;  // below it the ranks' letters carry it, or a copy of it costs nothing

  std::shared_ptr<Host> host_;  // in whose heap it lies; none: in ordinary memory
  std::byte* data_ = nullptr;
  bool given_up_ = false;
};

// Until the operations are done; their blocks are given up where they are still in use then. look: see Engine::wait.
void wait_for(Engine& engine, const std::vector<std::shared_ptr<Handle>>& handles, const std::vector<Block*>& blocks,
              const std::function<void()>& look);

void copy_bytes(std::byte* to, const std::byte* from, size_t bytes);
void give(const Tensor& output, const std::byte* from);
inline void fill(const Block& block, const Tensor& from) { copy_bytes(block.data(), from.data, from.bytes()); }

}  // namespace ringdp::xla
