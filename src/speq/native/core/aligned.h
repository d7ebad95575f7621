// Zeroed memory aligned to a cache line. Large pieces take no memory before they are touched.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace speq {

// What calloc() gave stands in front of the aligned memory.
struct AlignedDelete {
    void operator()(void* p) const { std::free(static_cast<void**>(p)[-1]); }
};

template <class T>
using Aligned = std::unique_ptr<T[], AlignedDelete>;

template <class T>
Aligned<T> make_aligned(size_t count) {
    constexpr size_t line = 64;
    void* whole = std::calloc(count * sizeof(T) + 2 * line + sizeof(void*), 1);
    if (!whole) throw std::bad_alloc();
    const auto begin = (reinterpret_cast<uintptr_t>(whole) + sizeof(void*) + line - 1) / line * line;
    auto* p = reinterpret_cast<T*>(begin);
    reinterpret_cast<void**>(begin)[-1] = whole;
    return Aligned<T>(p);
}

}  // namespace speq
