// Memory that is written for the first time costs a page fault for every 4 KiB, which for a large tensor takes as long as
// its exchange. Where the system leaves the choice to programs (transparent_hugepage/enabled is madvise, as most
// distributions have it), this asks for pages of 2 MiB. NumPy does so by itself; other allocators do not.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>

namespace ringdp {

constexpr size_t kHugePage = size_t{2} << 20, kWorthHugePages = 2 * kHugePage;

// `data` is about to be written: the whole huge pages in it. It only speeds up; what the system makes of it is no matter.
inline void expect_writes(void* data, size_t bytes) {
  if (bytes < kWorthHugePages) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kHugePage * kHugePage;
  if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

}  // namespace ringdp
