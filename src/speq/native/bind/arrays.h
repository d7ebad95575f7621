// NumPy arrays as arguments.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <type_traits>

#include "core/checks.h"

namespace speq {

template <class T, class... Shape>
using Array = nanobind::ndarray<T, nanobind::c_contig, nanobind::device::cpu, Shape...>;
template <class T>
using Vector = Array<T, nanobind::ndim<1>>;
template <class T>
using Table = Array<T, nanobind::ndim<2>>;

// An array of a mapped file may begin anywhere, but its elements are read as what they are.
template <class... Arrays>
void require_aligned(const Arrays&... arrays) {
    const auto is_aligned = [](const auto& array) {
        using T = std::remove_cvref_t<decltype(*array.data())>;
        return reinterpret_cast<uintptr_t>(array.data()) % alignof(T) == 0;
    };
    require((is_aligned(arrays) && ...), "an array is not aligned to its elements");
}

}  // namespace speq
