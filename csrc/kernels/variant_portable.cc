// The kernels in the architecture's baseline, without intrinsics: the readable form that the others are tested against.
#include "kernels/loops.h"
#include "kernels/simd.h"

namespace ringdp::kernels {
const Table portable_table = kTable;
}
