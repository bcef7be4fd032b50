// Several operations of one call.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "xla/block.h"

namespace ringdp::xla {

struct Member {
  Submission submission;
  std::vector<Block*> blocks;  // what it uses
};

// Until all are done, or one has failed, which is thrown then. Each gets its number behind its name.
//
// layout: a line for each of the caller's tensors, which the ranks compare: where one differs, all raise ErrorKind::mismatch
// with it. look: see Engine::wait.
std::vector<std::shared_ptr<Handle>> exchange_group(Engine& engine, std::vector<Member> members,
                                                    const std::string& layout, const std::function<void()>& look);

}  // namespace ringdp::xla
