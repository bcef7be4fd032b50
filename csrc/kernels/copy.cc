#include "kernels/copy.h"

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <emmintrin.h>  // SSE2: the baseline
#endif

namespace ringdp::kernels {

#if defined(__x86_64__)

namespace {

constexpr size_t kLine = 64;

// Four registers a line. Store(to, value) writes 16 bytes to an address that is a multiple of 16.
template <class Store>
void copy_lines(char* to, const char* from, size_t lines, const Store& store) {
  for (size_t i = 0; i < lines; ++i, to += kLine, from += kLine) {
    const auto* source = reinterpret_cast<const __m128i*>(from);
    auto* line = reinterpret_cast<__m128i*>(to);
    const __m128i a = _mm_loadu_si128(source), b = _mm_loadu_si128(source + 1);
    const __m128i c = _mm_loadu_si128(source + 2), d = _mm_loadu_si128(source + 3);
    store(line, a);
    store(line + 1, b);
    store(line + 2, c);
    store(line + 3, d);
  }
}

// Whole lines of `to` by `store`, what is left at both ends by memcpy.
template <class Store>
void copy_by_lines(void* to_, const void* from_, size_t bytes, const Store& store) {
  auto* to = static_cast<char*>(to_);
  auto* from = static_cast<const char*>(from_);
  const size_t head = (kLine - reinterpret_cast<uintptr_t>(to) % kLine) % kLine;
  if (bytes < head + kLine) {
    if (bytes > 0) std::memcpy(to, from, bytes);
    return;
  }
  std::memcpy(to, from, head);
  const size_t lines = (bytes - head) / kLine, end = head + lines * kLine;
  copy_lines(to + head, from + head, lines, store);
  std::memcpy(to + end, from + end, bytes - end);
}

}  // namespace

void copy(void* to, const void* from, size_t bytes) {
  copy_by_lines(to, from, bytes, [](__m128i* at, __m128i value) { _mm_store_si128(at, value); });
}

void stream(void* to, const void* from, size_t bytes) {
  copy_by_lines(to, from, bytes, [](__m128i* at, __m128i value) { _mm_stream_si128(at, value); });
  _mm_sfence();  // before anybody is told that the memory is written
}

#else

void copy(void* to, const void* from, size_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
}
void stream(void* to, const void* from, size_t bytes) { copy(to, from, bytes); }

#endif

}  // namespace ringdp::kernels
