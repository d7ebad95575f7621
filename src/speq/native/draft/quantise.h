// Activations of one token for the draft product: int8 in -127..127, in the byte order of the draft plane, with one
// scale per 64 columns (per 32 where groups are that small).
#pragma once
#include <cmath>
#include <cstring>

#include "core/kernels.h"
#include "gemm/block_decoder.h"

namespace speq::SPEQ_ISA {

static_assert(kWideRows <= kDraftCopies);

#if SPEQ_AVX2

// Once for each row of a vector.
SPEQ_INLINE void store_copies(void* out, __m256i v) {
    for (int i = 0; i < kWideRows; ++i) _mm256_storeu_si256(static_cast<__m256i*>(out) + i, v);
}

template <DType D>
SPEQ_INLINE void store_in_plane_order(int8_t* out, const __m256i (&q)[4]) {
    // After both packs a lane holds k = 0-3, 8-11, 16-19, 24-27 and the other one the rest of each eight.
    __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    if constexpr (D == DType::bf16) {
        const __m256i interleave = _mm256_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15,  //
                                                    0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
        bytes = _mm256_shuffle_epi8(bytes, interleave);
    } else {
        bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 2, 6, 1, 5, 3, 7));
    }
    store_copies(out, bytes);
}

// What takes the 64 of the levels back in each lane of these values.
SPEQ_INLINE __m256i offsets_of(const int8_t* values) {
    const __m256i q = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
    return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), q), _mm256_set1_epi16(-64));
}
template <class F>
SPEQ_INLINE void store_offsets(const int8_t* values, int32_t* out) {
    const __m256i first = offsets_of(values), second = offsets_of(values + 32 * kWideRows);
    store_copies(out, F::halves ? first : _mm256_add_epi32(first, second));
    if constexpr (F::halves) store_copies(out + 8 * kWideRows, second);
}

template <DType D>
SPEQ_INLINE void quantise_half(const float* x, float inverse, int8_t* out) {
    __m256i q[4];
    unroll<4>([&](auto i) SPEQ_LAMBDA {
        q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), _mm256_set1_ps(inverse)));
    });
    store_in_plane_order<D>(out, q);
}

#else

template <DType D>
inline void quantise_half(const float* x, float inverse, int8_t* out) {
    for (int b = 0; b < 32; ++b) out[b] = static_cast<int8_t>(std::nearbyint(x[column_of_byte(D, b)] * inverse));
}

// Plain products of levels need no offset.
template <class F>
void store_offsets(const int8_t*, int32_t*) {}

#endif

// Quantises a row of `columns` float32 (a multiple of 64), one scale per 64 columns, or per 32 where groups are that
// small.
template <class F>
void quantise_row(const float* x, int columns, DraftRow out) {
    constexpr int width = F::halves ? 32 : 64;
    for (int k = 0; k < columns; k += width) {
        Vec8 top = zero();
        for (int i = 0; i < width; i += 8) {
            const Vec8 v = load(x + k + i);
            top = max(top, max(v, mul(v, broadcast(-1.0f))));
        }
        const float peak = largest(top);
        // A peak so small that its inverse overflows is drafted as zero; so is one that is not finite (the exact pass
        // reports it).
        const bool usable = peak > 0x1p-100f && peak < 0x1p100f;
        const float inverse = usable ? 127.0f / peak : 0.0f;
        for (int h = 0; h < width; h += 32) {
            int8_t* values = out.values + (k + h) * kWideRows;
            if (usable)
                quantise_half<F::dtype>(x + k + h, inverse, values);
            else
                std::memset(values, 0, 32 * kWideRows);
            out.scales[(k + h) / 32] = usable ? peak * (1.0f / (127.0f * 64.0f)) : 0.0f;
        }
    }
    for (int b = 0; b < columns / kBlock; ++b)
        store_offsets<F>(out.values + b * kBlock * kWideRows, out.offsets + (F::halves ? 16 : 8) * b * kWideRows);
}

}  // namespace speq::SPEQ_ISA
