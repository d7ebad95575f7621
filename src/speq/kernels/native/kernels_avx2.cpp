#define SPEQ_ISA avx2
#include "kernels_impl.h"

namespace speq {
Kernels avx2_kernels() { return avx2::make_kernels("avx2"); }
}  // namespace speq
