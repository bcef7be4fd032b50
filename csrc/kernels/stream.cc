#include "kernels/stream.h"

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <emmintrin.h>  // SSE2: the baseline
#endif

namespace ringdp::kernels {

#if defined(__x86_64__)

void stream(void* to, const void* from, size_t bytes) {
  constexpr size_t kLine = 64;  // a cache line is written whole, or it would have to be read after all
  auto* t = static_cast<char*>(to);
  auto* f = static_cast<const char*>(from);
  const size_t to_line = (kLine - reinterpret_cast<uintptr_t>(t) % kLine) % kLine;
  if (bytes < to_line + kLine) {
    std::memcpy(t, f, bytes);
    return;
  }
  std::memcpy(t, f, to_line);
  size_t i = to_line;
  for (; i + kLine <= bytes; i += kLine) {
    const auto* source = reinterpret_cast<const __m128i*>(f + i);
    auto* line = reinterpret_cast<__m128i*>(t + i);
    const __m128i a = _mm_loadu_si128(source), b = _mm_loadu_si128(source + 1);
    const __m128i c = _mm_loadu_si128(source + 2), d = _mm_loadu_si128(source + 3);
    _mm_stream_si128(line, a);
    _mm_stream_si128(line + 1, b);
    _mm_stream_si128(line + 2, c);
    _mm_stream_si128(line + 3, d);
  }
  _mm_sfence();  // before anybody is told that the memory is written
  std::memcpy(t + i, f + i, bytes - i);
}

#else

void stream(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }

#endif

}  // namespace ringdp::kernels
