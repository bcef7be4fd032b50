#include "xla/flat.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "base/check.h"
#include "bucket/plan.h"
#include "xla/block.h"
#include "xla/group.h"

namespace ringdp::xla {

namespace {

struct Packed {
  PlanBucket layout;
  std::unique_ptr<Block> block;
};

std::vector<Packed> packed(const Engine& engine, const std::vector<Tensor>& tensors) {
  std::vector<PlanTensor> sizes;
  for (const Tensor& tensor : tensors) sizes.push_back({tensor.count(), tensor.dtype});
  std::vector<Packed> all;
  for (PlanBucket& bucket : assign_buckets(sizes, kMostBytes, kMostBytes)) {
    auto block = std::make_unique<Block>(engine, bucket.count * size_of(bucket.dtype));
    const size_t item = size_of(bucket.dtype);
    uint64_t filled = 0;  // what lies between two tensors is exchanged, too, and must be the same at each call
    for (size_t i = 0; i < bucket.tensors.size(); ++i) {
      const Tensor& tensor = tensors[bucket.tensors[i]];
      std::fill(block->data() + filled * item, block->data() + bucket.offsets[i] * item, std::byte{0});
      copy_bytes(block->data() + bucket.offsets[i] * item, tensor.data, tensor.bytes());
      filled = bucket.offsets[i] + tensor.count();
    }
    std::fill(block->data() + filled * item, block->data() + bucket.count * item, std::byte{0});
    all.push_back({std::move(bucket), std::move(block)});
  }
  return all;
}

void unpack(const Packed& bucket, const std::vector<Tensor>& outputs) {
  const size_t item = size_of(bucket.layout.dtype);
  for (size_t i = 0; i < bucket.layout.tensors.size(); ++i) {
    const Tensor& output = outputs[bucket.layout.tensors[i]];
    give(output, bucket.block->data() + bucket.layout.offsets[i] * item);
  }
}

}  // namespace

void exchange_flat(Engine& engine, const Submission& how, const std::vector<Tensor>& inputs,
                   const std::vector<Tensor>& outputs, const std::string& layout, const std::function<void()>& look) {
  RINGDP_CHECK(inputs.size() == outputs.size() && !inputs.empty());
  for (size_t i = 0; i < inputs.size(); ++i)
    RINGDP_CHECK(inputs[i].dtype == outputs[i].dtype && inputs[i].shape == outputs[i].shape);
  const std::vector<Packed> buckets = packed(engine, inputs);
  std::vector<Member> members;
  for (const Packed& bucket : buckets) {
    Submission s = how;
    s.input = s.output = bucket.block->data();
    s.dtype = bucket.layout.dtype;
    s.shape = {bucket.layout.count};
    members.push_back({std::move(s), {bucket.block.get()}});
  }
  exchange_group(engine, std::move(members), layout, look);
  for (const Packed& bucket : buckets) unpack(bucket, outputs);
}

}  // namespace ringdp::xla
