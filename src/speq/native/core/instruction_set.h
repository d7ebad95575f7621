// What the file that includes this is compiled for, and how its loops are written.
#pragma once
#include <utility>

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define SPEQ_AVX2 1
#include <immintrin.h>
#else
#define SPEQ_AVX2 0
#endif

#if SPEQ_AVX2 && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define SPEQ_AVX512 1
#else
#define SPEQ_AVX512 0
#endif

#if SPEQ_AVX512 && defined(__AVX512BF16__)
#define SPEQ_AVX512BF16 1
#else
#define SPEQ_AVX512BF16 0
#endif

#define SPEQ_INLINE inline __attribute__((always_inline))
#define SPEQ_LAMBDA __attribute__((always_inline))

namespace speq::SPEQ_ISA {

SPEQ_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }

template <int I>
using Index = std::integral_constant<int, I>;

// f(0), f(1), ..., f(N - 1) with compile-time indices, so that arrays of vectors indexed by them stay in registers.
template <int N, class F>
SPEQ_INLINE void unroll(F&& f) {
    [&]<int... I>(std::integer_sequence<int, I...>)
        SPEQ_LAMBDA { (f(Index<I>{}), ...); }(std::make_integer_sequence<int, N>{});
}

}  // namespace speq::SPEQ_ISA
