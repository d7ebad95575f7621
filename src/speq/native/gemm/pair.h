// What the exact products multiply at a time: sixteen columns of kWideRows rows. Lane l of a row has columns l and
// l + 8 of the sixteen, and adds the product of column l + 8 first, which is the order of the BF16 instruction.
#pragma once
#include "gemm/activations.h"

namespace speq::SPEQ_ISA {

constexpr int kWides = kRowsPerBlock / kWideRows;  // vectors of rows in a row block

struct FloatPair {
    Wide low, high;  // columns 0 to 7, columns 8 to 15
};

// `Weights`: as decoded, and as they rest in a strip of kFloats floats. `Inputs`: activations, of one token or, on a
// machine with kWideRows == 2, of two, one in each half; then swapped weights make up for the other two products.
template <DType D>
struct Pair {
    using Weights = FloatPair;
    using Inputs = FloatPair;
    static constexpr int kFloats = kPairColumns * kWideRows;

    static SPEQ_INLINE Inputs inputs(const float* x, int unit_step = 8) {
        return {wide_broadcast(x), wide_broadcast(x + unit_step)};
    }
    static SPEQ_INLINE Inputs inputs_of_two(const float* x) { return {wide_load(x), wide_load(x + 16)}; }
    static SPEQ_INLINE Weights swapped(const Weights& w) { return {wide_swap(w.low), wide_swap(w.high)}; }
    static SPEQ_INLINE Wide multiply_add(const Weights& w, const Inputs& x, Wide acc) {
        if constexpr (D == DType::bf16) return wide_fma_short(w.low, x.low, wide_fma_short(w.high, x.high, acc));
        return wide_fma(w.low, x.low, wide_fma(w.high, x.high, acc));
    }
    static SPEQ_INLINE Weights load(const float* p) { return {wide_load(p), wide_load(p + kWideLanes)}; }
    static SPEQ_INLINE void store(float* p, const Weights& w) {
        wide_store(p, w.low);
        wide_store(p + kWideLanes, w.high);
    }
    static SPEQ_INLINE FloatPair widen(const Weights& w) { return w; }
};

#if SPEQ_AVX512

// Widens 32-bit lanes with column l in the lower half and l + 8 in the upper.
SPEQ_INLINE FloatPair widen_bf16(__m512i lanes) {
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    return {Wide{_mm512_castsi512_ps(_mm512_slli_epi32(lanes, 16))},
            Wide{_mm512_castsi512_ps(_mm512_and_si512(lanes, upper))}};
}

#endif

#if SPEQ_AVX512BF16

// Both columns of a lane in its 32 bits, column l in the lower half.
template <>
struct Pair<DType::bf16> {
    struct Weights {
        __m512i v;
    };
    using Inputs = Weights;
    static constexpr int kFloats = kPairColumns * kWideRows / 2;

    static SPEQ_INLINE Inputs inputs(const float* x, int = 8) {
        return {_mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)))};
    }
    static SPEQ_INLINE Inputs inputs_of_two(const float* x) { return {_mm512_loadu_si512(x)}; }
    static SPEQ_INLINE Weights swapped(const Weights& w) { return {_mm512_shuffle_i64x2(w.v, w.v, 0x4e)}; }
    static SPEQ_INLINE Wide multiply_add(const Weights& w, const Inputs& x, Wide acc) {
        return {_mm512_dpbf16_ps(acc.v, (__m512bh)w.v, (__m512bh)x.v)};
    }
    static SPEQ_INLINE Weights load(const float* p) { return {_mm512_loadu_si512(p)}; }
    static SPEQ_INLINE void store(float* p, const Weights& w) { _mm512_storeu_si512(p, w.v); }
    static SPEQ_INLINE FloatPair widen(const Weights& w) { return widen_bf16(w.v); }
};

#endif

}  // namespace speq::SPEQ_ISA
