// The kernels, compiled for one instruction set.
#define LT_ISA avx512
#define LT_BYTES 64
#include "kernels.h"

namespace lt {
const Kernels avx512_kernels = avx512::kernel_table();
}
