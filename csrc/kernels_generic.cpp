// The kernels, compiled for one instruction set.
#define LT_ISA generic
#define LT_BYTES 16
#include "kernels.h"

namespace lt {
const Kernels generic_kernels = generic::kernel_table();
}
