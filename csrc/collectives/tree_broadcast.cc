// Broadcast by a pipelined binomial tree: log2 N hops for the first segment. The root sends every element log2 N times,
// so it is for tensors whose time is mostly latency.
//
// Eight ranks, root 0; for another root all numbers are counted from it, modulo N. The parent of a rank is its number
// without its lowest one bit; its children have one more bit below that one, the deepest subtree is served first:
//
//   0 ──┬── 4 ──┬── 6 ── 7
//       ├── 2   └── 5
//       │   └── 3
//       └── 1
//
// Each segment is received straight into the output and sent on to all children as soon as it is there. No scratch.
#include "collectives/moves.h"

namespace ringdp {
namespace {

struct Tree {
  int parent = -1;            // -1: the root
  std::vector<int> children;  // deepest subtree first
};

Tree binomial_tree(int ranks, int rank, int root) {
  const int64_t number = (rank - root + ranks) % ranks;
  const auto rank_of = [&](int64_t n) { return static_cast<int>((n + root) % ranks); };
  Tree tree;
  int64_t bit = 1;
  while (bit < ranks && !(number & bit)) bit <<= 1;  // the lowest one bit; for the root the first beyond all numbers
  if (number != 0) tree.parent = rank_of(number - bit);
  for (bit >>= 1; bit > 0; bit >>= 1)
    if (number + bit < ranks) tree.children.push_back(rank_of(number + bit));
  return tree;
}

}  // namespace

Schedule tree_broadcast(int ranks, int rank, int root, uint64_t count, Pipeline pipeline, bool in_place) {
  check(pipeline);
  check(ranks, rank);
  check(ranks, root);
  const Tree tree = binomial_tree(ranks, rank, root);
  const Cut cut({0, count}, pipeline.segment);
  Turns window(pipeline.depth);  // the last `depth` receives
  Moves moves;

  for (uint64_t i = 0; i < cut.size(); ++i) {
    const auto [at, n] = cut[i];
    const Region here = rank == root ? in_input(at) : in_output(at);
    int32_t ready = kNone;
    if (rank != root) {
      ready = moves.receive(tree.parent, in_output(at), n, {window.oldest()});
      window.add(ready);
    }
    for (int child : tree.children) moves.send(child, here, n, {ready});
    if (rank == root && !in_place) moves.copy(in_output(at), in_input(at), n, false, {});
  }
  return moves.take();
}

}  // namespace ringdp
