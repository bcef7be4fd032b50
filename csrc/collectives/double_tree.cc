// All-reduce over two binary trees at once, each for one half of the tensor, pipelined in segments: sums go up to the
// root, results come down. The hops of a segment grow with log2 N, not with N as in the ring. One tree alone would use
// half of each link, as its leaves only send and then only receive; but every rank is a leaf in one of the two trees
// at least, so in both together it sends and receives 2 n bytes of a tensor of n, hardly more than in the ring.
// Memory: `depth` segments of scratch.
//
// The first tree numbers the ranks 1 … N and lays them out so that, read from left to right, they are in order. Odd
// numbers are leaves; the children of an even number are half its lowest one bit away, and where there is no such
// number, on the right, the root of what is there. The second tree is its mirror image (N + 1 - number) if N is even,
// and shifted by one (number + 1, N becomes 1) if N is odd; so a rank's number is even in at most one of them.
//
//   six ranks, by number       first tree: number = rank + 1     second tree: number = 6 - rank
//
//              4                        rank 3                             rank 2
//          ┌───┴───┐                 ┌────┴────┐                        ┌────┴────┐
//          2       6                 1         5                        4         0
//        ┌─┴─┐   ┌─┘               ┌─┴─┐     ┌─┘                      ┌─┴─┐     ┌─┘
//        1   3   5                 0   2     4                        5   3     1
//
// The sum goes in the order of the numbers: ((1 + 2) + 3) comes to 4, which adds it to its own and then (5 + 6). The
// root finishes each segment once; the others take what comes down.
//
// Sanders, Speck & Träff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan", Parallel Computing 35
// (2009). There the edges are coloured so that no rank sends or receives twice in one step; nothing here runs in step.
#include "collectives/partners.h"
#include "collectives/ring.h"

namespace ringdp {
namespace {

struct Node {
  int parent = -1;  // ranks; -1: none
  int left = -1, right = -1;
};

// The node of `number` among 1 … ranks, all as numbers.
Node node_of(int64_t number, int64_t ranks) {
  const auto below = [&](int64_t n, int64_t reach) {  // n, or the root of what there is on its left
    while (n > ranks && reach > 1) n -= reach /= 2;
    return static_cast<int>(n <= ranks ? n : -1);
  };
  Node node;
  int64_t bit = number & -number, up = number;  // bit: the lowest one of `up`
  if (bit > 1) node.left = static_cast<int>(number - bit / 2), node.right = below(number + bit / 2, bit / 2);
  if (number == bit && 2 * bit > ranks) return node;  // the root
  do {
    up = (up ^ bit) | 2 * bit;
    bit *= 2;
  } while (up > ranks);
  node.parent = static_cast<int>(up);
  return node;
}

Node node_of(int tree, int ranks, int rank) {
  const auto number_of = [&](int r) { return tree == 0 ? r + 1 : ranks % 2 == 0 ? ranks - r : (r + 1) % ranks + 1; };
  const auto rank_of = [&](int n) {
    return n < 0 ? -1 : tree == 0 ? n - 1 : ranks % 2 == 0 ? ranks - n : (n - 2 + ranks) % ranks;
  };
  const Node node = node_of(number_of(rank), ranks);
  return {rank_of(node.parent), rank_of(node.left), rank_of(node.right)};
}

class DoubleTree {
 public:
  DoubleTree(int ranks, int rank, uint64_t count, Pipeline pipeline, Arithmetic arithmetic, bool in_place)
      : half_{half(ranks, rank, 0, count, pipeline.segment), half(ranks, rank, 1, count, pipeline.segment)},
        arithmetic_(arithmetic),
        input_is_in_output_(in_place || arithmetic.prescale),
        slot_(std::min(pipeline.segment, chunk_of(count, 2, 0).end)),
        scratch_slots_(std::min<uint64_t>(pipeline.depth, receives(half_[0]) + receives(half_[1]))),
        slots_(0, scratch_slots_, slot_),
        window_(pipeline.depth) {}

  Schedule schedule() {
    const uint64_t segments = half_[0].cut.size();  // of the longer half
    for (uint64_t i = 0; i < segments; ++i)
      for (Half& half : half_) reduce_up(half, i);
    for (uint64_t i = 0; i < segments; ++i)
      for (Half& half : half_) pass_down(half, i);
    return moves_.take(scratch_slots_ * slot_);
  }

 private:
  struct Half {
    Node node;
    Cut cut;
    std::vector<int32_t> up;  // by segment: the last move that has to do with the sum here
  };
  static Half half(int ranks, int rank, int tree, uint64_t count, uint64_t segment) {
    return {node_of(tree, ranks, rank), {chunk_of(count, 2, tree), segment}, {}};
  }

  void reduce_up(Half& half, uint64_t i) {
    if (i >= half.cut.size()) return;
    const auto [at, n] = half.cut[i];
    const Node& node = half.node;
    int32_t ready = arithmetic_.prescale ? moves_.copy(in_output(at), in_input(at), n, true, {}) : kNone;
    if (node.left >= 0) ready = add(node.left, at, n, true, ready);
    if (node.right >= 0) ready = add(node.right, at, n, false, ready);
    if (node.parent >= 0) {
      const bool in_input_still = node.left < 0 && !arithmetic_.prescale;
      const int32_t sent = moves_.send(node.parent, in_input_still ? in_input(at) : in_output(at), n, {ready});
      ready = node.left >= 0 || input_is_in_output_ ? sent : kNone;
    } else if (arithmetic_.finish) {
      ready = moves_.finish(in_output(at), in_output(at), n, {ready});
    }
    half.up.push_back(ready);
  }

  // The sum of a subtree: the left one, which comes first, is added to the contribution, the right one to the sum.
  int32_t add(int child, uint64_t at, uint64_t n, bool left, int32_t ready) {
    const Region slot = slots_.region(), output = in_output(at);
    const Region own = left && !arithmetic_.prescale ? in_input(at) : output;
    const int32_t received = moves_.receive(child, slot, n, {slots_.freed_by()});
    const int32_t sum = moves_.reduce(output, left ? slot : own, left ? own : slot, n, {received, ready});
    slots_.read_by(sum);
    window_.add(received);
    return sum;
  }

  void pass_down(Half& half, uint64_t i) {
    if (i >= half.cut.size()) return;
    const auto [at, n] = half.cut[i];
    const Node& node = half.node;
    int32_t ready = half.up[i];
    if (node.parent >= 0) {
      ready = moves_.receive(node.parent, in_output(at), n, {window_.oldest(), ready});
      window_.add(ready);
    }
    for (const int child : {node.left, node.right})
      if (child >= 0) moves_.send(child, in_output(at), n, {ready});
  }

  static uint64_t receives(const Half& half) {  // into scratch
    return half.cut.size() * ((half.node.left >= 0) + (half.node.right >= 0));
  }

  std::array<Half, 2> half_;
  const Arithmetic arithmetic_;
  const bool input_is_in_output_;
  const uint64_t slot_, scratch_slots_;
  Slots slots_;
  Turns window_;  // the last `depth` receives
  Moves moves_;
};

}  // namespace

std::vector<int> double_tree_partners(int ranks, int rank) {
  std::vector<int> partners;
  for (const int tree : {0, 1}) {
    const Node node = node_of(tree, ranks, rank);
    for (const int peer : {node.parent, node.left, node.right})
      if (peer >= 0) partners.push_back(peer);
  }
  return partners;
}

Schedule double_tree(int ranks, int rank, uint64_t count, Pipeline pipeline, Arithmetic arithmetic, bool in_place) {
  check(pipeline);
  check(ranks, rank);
  if (ranks == 1) return reduce_alone(count, pipeline.segment, arithmetic, in_place);
  return DoubleTree(ranks, rank, count, pipeline, arithmetic, in_place).schedule();
}

}  // namespace ringdp
