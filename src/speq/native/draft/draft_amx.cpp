// The kernel table of machines with tiles (AMX): that of AVX-512 with another draft of several tokens.
#include "draft/draft_amx.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace speq::amx {

bool has_tiles() {
    constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;
    constexpr int kRequestPermission = 0x1023, kTileData = 18;  // of arch_prctl; the state that tiles take
    unsigned a, b, c, d = 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & kTile) || !(d & kInt8)) return false;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

Kernels with_tiles(Kernels table) {
    table.name = "amx";
    // Nothing of the residuals or of how tables are made reaches a draft.
    table.prepare_draft = [](const SplitWeight& w) -> Kernels::PrepareFew {
        const bool halves = w.group_size == 32;
        if (w.dtype == DType::bf16)
            return halves ? prepare_draft<KernelFormat<DType::bf16, 0, true, true>>
                          : prepare_draft<KernelFormat<DType::bf16, 0, true, false>>;
        return halves ? prepare_draft<KernelFormat<DType::fp16, 0, true, true>>
                      : prepare_draft<KernelFormat<DType::fp16, 0, true, false>>;
    };
    table.draft_few = [](const SplitWeight& w) -> Kernels::ExactRows {
        return w.group_size == 32 ? draft_tiles<KernelFormat<DType::bf16, 0, true, true>>
                                  : draft_tiles<KernelFormat<DType::bf16, 0, true, false>>;
    };
    table.drafts_few = true;
    return table;
}

}  // namespace speq::amx
