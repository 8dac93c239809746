// The kernels, compiled for one instruction set.
#define LT_ISA avx2
#define LT_BYTES 32
#include "kernels.h"

namespace lt {
const Kernels avx2_kernels = avx2::kernel_table();
}
