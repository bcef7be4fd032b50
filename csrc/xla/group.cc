#include "xla/group.h"

#include <utility>

#include "base/check.h"

namespace ringdp::xla {

std::vector<std::shared_ptr<Handle>> exchange_group(Engine& engine, std::vector<Member> members,
                                                    const std::string& layout, const std::function<void()>& look) {
  RINGDP_CHECK(!members.empty() && !layout.empty());
  const Engine::Caller caller(engine);
  std::vector<std::shared_ptr<Handle>> all;
  const auto exchange = [&](size_t begin, size_t end) {
    std::vector<Submission> submissions;
    std::vector<Block*> blocks;
    for (size_t i = begin; i < end; ++i) {
      Submission& s = submissions.emplace_back(std::move(members[i].submission));
      if (!s.name.empty()) s.name += "." + std::to_string(i);
      blocks.insert(blocks.end(), members[i].blocks.begin(), members[i].blocks.end());
    }
    const auto handles = engine.submit_group(std::move(submissions), layout);
    wait_for(engine, handles, blocks, look);
    for (const auto& handle : handles) (void)handle->result();
    all.insert(all.end(), handles.begin(), handles.end());
  };
  // The first alone: where the ranks differ in what they have, they may in the number of operations as well, and of those
  // that others lack none must be on its way.
  exchange(0, 1);
  if (members.size() > 1) exchange(1, members.size());
  return all;
}

}  // namespace ringdp::xla
