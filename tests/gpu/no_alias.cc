// Where kernels run over arrays of the host, those are where their addresses say; and what one would stop is the process.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

extern "C" {
extern ptrdiff_t standin_alias;
ptrdiff_t standin_alias = 0;
extern uint64_t standin_device_memory, standin_device_bytes;
uint64_t standin_device_memory = 0, standin_device_bytes = UINT64_MAX;
void standin_trap();
void standin_trap() { std::abort(); }
void standin_check_pinned(uint64_t at, size_t bytes);
void standin_check_pinned(uint64_t, size_t) { std::abort(); }  // all memory is the GPU's
}
