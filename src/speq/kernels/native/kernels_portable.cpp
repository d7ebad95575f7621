#define SPEQ_ISA portable
#include "kernels_impl.h"

namespace speq {
Kernels portable_kernels() { return portable::make_kernels("portable"); }
}  // namespace speq
