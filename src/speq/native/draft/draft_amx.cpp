// The kernel table of machines with tiles (AMX): that of AVX-512 with another draft of several tokens.
#include "draft/draft_amx.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace speq::amx {

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
