#define SPEQ_ISA avx512
#include "kernels_impl.h"

namespace speq {
Kernels avx512_kernels() { return avx512::make_kernels("avx512"); }
}  // namespace speq
