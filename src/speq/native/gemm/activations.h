// The activations of an exact product, made ready once for all rows that they meet.
//
// A BF16 matrix is multiplied with activations rounded to BF16 (to nearest, ties to even; sums are float32), as BF16
// models are usually run; every product of two such numbers is exact in float32. An FP16 matrix is multiplied with the
// float32 activations as they are.
#pragma once
#include "core/kernels.h"
#include "core/simd.h"

namespace speq::SPEQ_ISA {

// Whether products of this type take two BF16 activations in one 32-bit lane, as one instruction multiplies them.
template <DType D>
constexpr bool kPacked = SPEQ_AVX512BF16 && D == DType::bf16;

// Floats that kPairColumns activations take.
template <DType D>
constexpr int kPairFloats = kPacked<D> ? kPairColumns / 2 : kPairColumns;

#if SPEQ_AVX2

SPEQ_INLINE __m256i rounded_bf16(Vec8 a) {
    const __m256i bits = _mm256_castps_si256(a.v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i number = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_ORD_Q));
    return _mm256_and_si256(_mm256_blendv_epi8(nan, rounded, number), _mm256_set1_epi32(static_cast<int>(0xffff0000u)));
}
SPEQ_INLINE Vec8 round_to_bf16(Vec8 a) { return {_mm256_castsi256_ps(rounded_bf16(a))}; }

#else

SPEQ_INLINE Vec8 round_to_bf16(Vec8 a) {
    return lanes([&](int i) { return nearest_bf16(a.v[i]); });
}

#endif

// Rounds (and packs) `columns` activations, a multiple of kPairColumns. Sixteen columns become one or two units of
// eight floats, `unit_step` floats apart; those of the next sixteen columns stand `pair_step` floats on. `out` may be x
// where both are as dense as can be.
template <DType D>
SPEQ_INLINE void prepare(const float* x, int columns, float* out, int unit_step, int pair_step) {
    for (int k = 0; k < columns; k += kPairColumns, out += pair_step) {
        const Vec8 low = load(x + k), high = load(x + k + 8);
#if SPEQ_AVX512BF16
        if constexpr (kPacked<D>) {
            const __m256i pair = _mm256_or_si256(rounded_bf16(high), _mm256_srli_epi32(rounded_bf16(low), 16));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), pair);
            continue;
        }
#endif
        store(out, D == DType::bf16 ? round_to_bf16(low) : low);
        store(out + unit_step, D == DType::bf16 ? round_to_bf16(high) : high);
    }
}

// A row of many tokens' activations.
template <DType D>
void prepare_row(const float* x, int columns, float* out) {
    prepare<D>(x, columns, out, 8, kPairFloats<D>);
}

// Activations of columns in a prepared row.
template <DType D>
SPEQ_INLINE const float* activations_from(const float* row, int column) {
    return row + column / kPairColumns * kPairFloats<D>;
}
template <DType D>
SPEQ_INLINE float activation(const float* row, int column) {
    if constexpr (!kPacked<D>) return row[column];
    const float* pair = activations_from<D>(row, column) + column % 8;
    const uint32_t bits = std::bit_cast<uint32_t>(*pair);
    return std::bit_cast<float>(column & 8 ? bits & 0xffff0000u : bits << 16);
}

}  // namespace speq::SPEQ_ISA
