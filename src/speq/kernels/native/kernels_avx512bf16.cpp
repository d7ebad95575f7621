#define SPEQ_ISA avx512bf16
#include "kernels_impl.h"

namespace speq {
Kernels avx512bf16_kernels() { return avx512bf16::make_kernels("avx512bf16"); }
}  // namespace speq
