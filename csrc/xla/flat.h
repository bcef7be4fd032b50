// Many tensors exchanged as one: packed one behind the other, those of each dtype by themselves.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "xla/call.h"

namespace ringdp::xla {

// The outputs, of the same shapes and dtypes, are written when all is done, or not at all.
//
// how: an all-reduce or a broadcast without tensors; its name is the prefix of those of the buckets. layout: a line for each tensor, which
// the ranks compare: where one differs, all raise ErrorKind::mismatch with it. look: see Engine::wait.
void exchange_flat(Engine& engine, const Submission& how, const std::vector<Tensor>& inputs,
                   const std::vector<Tensor>& outputs, const std::string& layout, const std::function<void()>& look);

}  // namespace ringdp::xla
