#include <algorithm>
#include <chrono>
#include <stdexcept>

#include "core/kernels.h"

#ifdef SPEQ_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace speq {

// What kernels.cpp becomes for each instruction set.
namespace portable {
Kernels make_kernels();
}
#ifdef SPEQ_X86
namespace avx2 {
Kernels make_kernels();
}
namespace avx512 {
Kernels make_kernels();
}
namespace avx512bf16 {
Kernels make_kernels();
}
#endif
#ifdef SPEQ_AMX
namespace amx {
Kernels with_tiles(Kernels);  // draft/draft_amx.cpp
}
#endif

namespace {

#ifdef SPEQ_X86
bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}

#ifdef SPEQ_AMX
// Whether there are tiles for bytes, and the system lets this process use them.
bool has_tiles() {
    constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;
    constexpr int kRequestPermission = 0x1023, kTileData = 18;  // of arch_prctl; the state that tiles take
    unsigned a, b, c, d = 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & kTile) || !(d & kInt8)) return false;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

// An instruction on twelve chains of zeros, enough for its throughput to show.
#define SPEQ_CHAINS(instruction) \
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11\n" instruction " %%zmm12, %%zmm12, %%zmm\\n\n.endr"
#define SPEQ_ZMM \
    "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10", "zmm11", "zmm12"
#define SPEQ_TIMED __attribute__((noinline, target("avx512f,avx512bf16")))

SPEQ_TIMED void clear_chains() { asm volatile("vzeroall" ::: SPEQ_ZMM, "zmm13", "zmm14", "zmm15"); }
SPEQ_TIMED void run_dot_products(int turns) {
    clear_chains();
    for (int i = 0; i < turns; ++i) asm volatile(SPEQ_CHAINS("vdpbf16ps")::: SPEQ_ZMM);
}
SPEQ_TIMED void run_multiply_adds(int turns) {
    clear_chains();
    for (int i = 0; i < turns; ++i) asm volatile(SPEQ_CHAINS("vfmadd231ps")::: SPEQ_ZMM);
}

// Seconds of the quickest of some tries: whoever else is on the machine makes a try longer, never shorter.
double quickest(void (*run)(int)) {
    using Clock = std::chrono::steady_clock;
    double best = 1e9;
    for (int i = 0; i < 12; ++i) {
        const auto begin = Clock::now();
        run(500);
        best = std::min(best, std::chrono::duration<double>(Clock::now() - begin).count());
    }
    return best;
}

// Whether a BF16 dot product, which takes the place of two multiply-adds and of what widens their weights, is one.
// AMD's processors run as many a cycle of either; Intel's with AVX-512 run four multiply-adds in its time, and lose
// with it.
bool dot_products_pay() { return quickest(run_dot_products) < 2.5 * quickest(run_multiply_adds); }
#endif

struct Candidate {
    Kernels table;
    bool pays = true;  // whether it is better than those after it
};

// What this machine can run. Tables of other instruction sets are not even made: that is code of these sets, too.
const std::vector<Candidate>& candidates() {
    static const std::vector<Candidate> all = [] {
        std::vector<Candidate> usable;
#ifdef SPEQ_X86
        const bool bf16 = has_avx512() && __builtin_cpu_supports("avx512bf16"), bf16_pays = bf16 && dot_products_pay();
#ifdef SPEQ_AMX
        if (has_avx512() && has_tiles())
            usable.push_back({amx::with_tiles(bf16_pays ? avx512bf16::make_kernels() : avx512::make_kernels())});
#endif
        if (bf16) usable.push_back({avx512bf16::make_kernels(), bf16_pays});
        if (has_avx512()) usable.push_back({avx512::make_kernels()});
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
            usable.push_back({avx2::make_kernels()});
#endif
        usable.push_back({portable::make_kernels()});
        return usable;
    }();
    return all;
}

}  // namespace

std::vector<std::string> available_isas() {
    std::vector<std::string> best, others;
    for (const auto& c : candidates()) (c.pays ? best : others).emplace_back(c.table.name);
    best.insert(best.end(), others.begin(), others.end());
    return best;
}

const Kernels& kernels(const std::string& isa) {
    for (const auto& c : candidates())
        if (isa.empty() ? c.pays : isa == c.table.name) return c.table;
    throw std::invalid_argument("this machine has no kernels for '" + isa + "'");
}

}  // namespace speq
