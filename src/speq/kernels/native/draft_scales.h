// The scales of a row block for the vector draft kernels.
#pragma once
#include "kernels.h"
#include "simd.h"

namespace speq::SPEQ_ISA {

constexpr int kPrefetch = 4096;  // bytes ahead in the draft plane

// The scales of four rows.
SPEQ_INLINE __m128 group_scales(const uint16_t* scales, int group) {
    const __m128i bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(scales + group * kRowsPerBlock));
    return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(bits), 16));
}

// What the codes' 64 adds to the products of block b, taken back for four rows.
template <class F>
SPEQ_INLINE __m128 add_offset(const uint16_t* scales, int group, const DraftRow& x, int b, __m128 offset) {
    const __m128 s0 = _mm_mul_ps(group_scales(scales, group), _mm_set1_ps(x.scales[2 * b]));
    if constexpr (!F::halves) return _mm_fmadd_ps(s0, _mm_set1_ps(x.offsets[2 * b] + x.offsets[2 * b + 1]), offset);
    const __m128 s1 = _mm_mul_ps(group_scales(scales, group + 1), _mm_set1_ps(x.scales[2 * b + 1]));
    offset = _mm_fmadd_ps(s0, _mm_set1_ps(x.offsets[2 * b]), offset);
    return _mm_fmadd_ps(s1, _mm_set1_ps(x.offsets[2 * b + 1]), offset);
}

}  // namespace speq::SPEQ_ISA
