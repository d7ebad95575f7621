#include <stdexcept>

#include "core/kernels.h"

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

namespace {

#ifdef SPEQ_X86
bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}
#endif

struct Candidate {
    bool (*usable)();
    Kernels table;
};

const std::vector<Candidate>& candidates() {
    static const std::vector<Candidate> all = {
#ifdef SPEQ_X86
        {[] { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }, avx512bf16::make_kernels()},
        {has_avx512, avx512::make_kernels()},
        {[] {
             return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
         },
         avx2::make_kernels()},
#endif
        {[] { return true; }, portable::make_kernels()},
    };
    return all;
}

}  // namespace

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const auto& c : candidates())
        if (c.usable()) names.emplace_back(c.table.name);
    return names;
}

const Kernels& kernels(const std::string& isa) {
    for (const auto& c : candidates())
        if (c.usable() && (isa.empty() || isa == c.table.name)) return c.table;
    throw std::invalid_argument("this machine has no kernels for '" + isa + "'");
}

}  // namespace speq
