// From the public functions to those of the variant that runs.
#include "kernels/kernels.h"

#include <atomic>
#include <cstring>

#include "base/check.h"
#include "kernels/simd.h"

namespace ringdp::kernels {
namespace {

const Variant* best() {
  for (const Variant& v : kVariants)
    if (v.runs_here()) return &v;
  fail(ErrorKind::internal, "no variant of the kernels runs here");  // the portable one always does
}

// Function-local, so that it is ready however early the first call comes.
std::atomic<const Variant*>& chosen() {
  static std::atomic<const Variant*> variant{best()};
  return variant;
}

const Row& row(Dtype dtype) { return chosen().load(std::memory_order_relaxed)->table->rows[static_cast<int>(dtype)]; }

const Casts& casts(Dtype narrow, Dtype wide) {
  RINGDP_CHECK(wide == Dtype::float32 || wide == Dtype::float64, name_of(wide), " is not cast");
  const Casts& found = wide == Dtype::float32 ? row(narrow).float32 : row(narrow).float64;
  RINGDP_CHECK(found.narrow != nullptr, name_of(narrow), " is no narrow float");
  return found;
}

}  // namespace

void reduce(Dtype dtype, ReduceOp op, void* to, const void* a, const void* b, size_t count) {
  RINGDP_CHECK(static_cast<int>(op) < kElementwiseOps, name_of(op), " does not look at each element by itself");
  const Reduce f = row(dtype).reduce[static_cast<int>(op)];
  RINGDP_CHECK(f != nullptr, name_of(dtype), " has no ", name_of(op));
  f(to, a, b, count);
}

void scale(Dtype dtype, void* to, const void* from, double factor, size_t count) {
  const Scale f = row(dtype).scale;
  RINGDP_CHECK(f != nullptr, name_of(dtype), " cannot be scaled");
  f(to, from, factor, count);
}

void divide(Dtype dtype, void* to, const void* from, int ranks, size_t count) {
  const Divide f = row(dtype).divide;
  RINGDP_CHECK(f != nullptr, name_of(dtype), " has no average");
  RINGDP_CHECK(ranks >= 1, ranks, " ranks");
  f(to, from, ranks, count);
}

void narrow(Dtype narrow, void* to, Dtype wide, const void* from, size_t count) {
  casts(narrow, wide).narrow(to, from, count);
}

void widen(Dtype wide, void* to, Dtype narrow, const void* from, size_t count) {
  casts(narrow, wide).widen(to, from, count);
}

size_t find_not_finite(Dtype dtype, const void* from, size_t count) {
  const Find f = row(dtype).not_finite;
  return f == nullptr ? count : f(from, count);
}

const char* variant() { return chosen().load(std::memory_order_relaxed)->name; }

bool force_variant(const char* name) {
  if (*name == '\0') {
    chosen() = best();
    return true;
  }
  for (const Variant& v : kVariants)
    if (std::strcmp(v.name, name) == 0 && v.runs_here()) {
      chosen() = &v;
      return true;
    }
  return false;
}

}  // namespace ringdp::kernels
