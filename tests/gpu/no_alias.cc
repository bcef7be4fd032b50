// Where kernels run over arrays of the host, those are where their addresses say; and what one would stop is the process.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

extern "C" {
extern ptrdiff_t standin_alias;
ptrdiff_t standin_alias = 0;
extern uint64_t standin_device_memory, standin_device_bytes;
uint64_t standin_device_memory = 0, standin_device_bytes = 0;
void standin_trap();
void standin_trap() { std::abort(); }
}
