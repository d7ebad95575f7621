// Zeroed memory aligned to a cache line.
#pragma once
#include <cstddef>
#include <cstring>
#include <memory>
#include <new>

namespace speq {

struct AlignedDelete {
    void operator()(void* p) const { ::operator delete(p, std::align_val_t{64}); }
};

template <class T>
using Aligned = std::unique_ptr<T[], AlignedDelete>;

template <class T>
Aligned<T> make_aligned(size_t count) {
    const size_t bytes = (count * sizeof(T) + 63) / 64 * 64 + 64;
    void* p = ::operator new(bytes, std::align_val_t{64});
    std::memset(p, 0, bytes);
    return Aligned<T>(static_cast<T*>(p));
}

}  // namespace speq
