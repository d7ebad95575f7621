// The draft product: int8 activations times the 4-bit codes' table values, one scale a group. It need not be exact,
// only fast; still it gives the same bits on every path.
//
// Codes become unsigned bytes level + 64 in 0..128; activations are int8 in -63..63, so that four products fit an int16
// (4 * 128 * 63 = 32256), which is how far the AVX2 multiply-add goes before widening. The 64 is taken back a group at
// a time.
#pragma once
#include "block_decoder.h"
#include "kernels.h"

namespace speq::SPEQ_ISA {

#if SPEQ_AVX2

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
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), bytes);
}

template <DType D>
SPEQ_INLINE int quantise_half(const float* x, float inverse, int8_t* out) {
    __m256i q[4], total = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), _mm256_set1_ps(inverse)));
        total = _mm256_add_epi32(total, q[i]);
    }
    store_in_plane_order<D>(out, q);
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(total), _mm256_extracti128_si256(total, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

#else

template <DType D>
inline int quantise_half(const float* x, float inverse, int8_t* out) {
    int total = 0;
    for (int b = 0; b < 32; ++b) {
        const int q = static_cast<int>(std::nearbyint(x[column_of_byte<D>(b)] * inverse));
        out[b] = static_cast<int8_t>(q);
        total += q;
    }
    return total;
}

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
        const float inverse = usable ? 63.0f / peak : 0.0f;
        for (int h = 0; h < width; h += 32) {
            const int total = usable ? quantise_half<F::dtype>(x + k + h, inverse, out.values + k + h) : 0;
            if (!usable) std::memset(out.values + k + h, 0, 32);
            out.scales[(k + h) / 32] = usable ? peak * (1.0f / (63.0f * 64.0f)) : 0.0f;
            out.offsets[(k + h) / 32] = static_cast<float>(-64 * total);
        }
    }
}

#if SPEQ_AVX2

constexpr int kPrefetch = 2048;  // bytes ahead in the draft plane

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

#if SPEQ_AVX512

template <class F>
void draft_rows(const SplitWeight& w, const DraftRow& x, int begin, int end, float* y) {
    const __m512i nibble = _mm512_set1_epi8(15), none = _mm512_setzero_si512();
    const __m512i lut = _mm512_add_epi8(
        _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(w.levels))), _mm512_set1_epi8(64));
    const int blocks = w.blocks(), shift = w.group_size == 128 ? 1 : 0;
    const uint8_t* codes = w.codes_at(begin, 0);
    for (int rb = begin; rb < end; ++rb, y += kRowsPerBlock) {
        const uint16_t* scales = w.scales_at(rb);
        __m512 acc[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
        __m128 offset = _mm_setzero_ps();
        for (int b = 0; b < blocks; ++b, codes += kRowsPerBlock * kBlock / 2) {
            const __m512i x0 =
                _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x.values + b * kBlock)));
            const __m512i x1 = _mm512_broadcast_i64x4(
                _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x.values + b * kBlock + 32)));
            _mm_prefetch(reinterpret_cast<const char*>(codes + kPrefetch), _MM_HINT_T0);
            _mm_prefetch(reinterpret_cast<const char*>(codes + kPrefetch + 64), _MM_HINT_T0);
            const int group = F::halves ? 2 * b : b >> shift;
            offset = add_offset<F>(scales, group, x, b, offset);
            unroll<2>([&](auto i) SPEQ_LAMBDA {
                const __m512i c = _mm512_loadu_si512(codes + 64 * i);
                const __m512i w0 = _mm512_shuffle_epi8(lut, _mm512_and_si512(c, nibble));
                const __m512i w1 = _mm512_shuffle_epi8(lut, _mm512_and_si512(_mm512_srli_epi16(c, 4), nibble));
                const uint16_t* at = scales + group * kRowsPerBlock + 2 * i;
                const __m512 s0 = _mm512_mul_ps(row_scales(at), _mm512_set1_ps(x.scales[2 * b]));
                const __m512i d0 = _mm512_dpbusd_epi32(none, w0, x0);
                if constexpr (F::halves) {
                    const __m512 s1 =
                        _mm512_mul_ps(row_scales(at + kRowsPerBlock), _mm512_set1_ps(x.scales[2 * b + 1]));
                    acc[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(d0), s0, acc[i]);
                    acc[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_dpbusd_epi32(none, w1, x1)), s1, acc[i]);
                } else {
                    acc[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_dpbusd_epi32(d0, w1, x1)), s0, acc[i]);
                }
            });
        }
        alignas(16) float o[4];
        _mm_store_ps(o, offset);
        unroll<2>([&](auto i) SPEQ_LAMBDA { wide_sum(Wide{acc[i]}, y + 2 * i); });
        for (int r = 0; r < kRowsPerBlock; ++r) y[r] += o[r];
    }
}

#else

template <class F>
void draft_rows(const SplitWeight& w, const DraftRow& x, int begin, int end, float* y) {
    const __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    const __m256i lut = _mm256_add_epi8(
        _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(w.levels))), _mm256_set1_epi8(64));
    const int blocks = w.blocks(), shift = w.group_size == 128 ? 1 : 0;
    const uint8_t* codes = w.codes_at(begin, 0);
    for (int rb = begin; rb < end; ++rb, y += kRowsPerBlock) {
        const uint16_t* scales = w.scales_at(rb);
        __m256 acc[kRowsPerBlock];
        for (auto& a : acc) a = _mm256_setzero_ps();
        __m128 offset = _mm_setzero_ps();
        for (int b = 0; b < blocks; ++b, codes += kRowsPerBlock * kBlock / 2) {
            const __m256i x0 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x.values + b * kBlock));
            const __m256i x1 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x.values + b * kBlock + 32));
            _mm_prefetch(reinterpret_cast<const char*>(codes + kPrefetch), _MM_HINT_T0);
            _mm_prefetch(reinterpret_cast<const char*>(codes + kPrefetch + 64), _MM_HINT_T0);
            const int group = F::halves ? 2 * b : b >> shift;
            offset = add_offset<F>(scales, group, x, b, offset);
            alignas(16) float s0[4], s1[4];
            _mm_store_ps(s0, _mm_mul_ps(group_scales(scales, group), _mm_set1_ps(x.scales[2 * b])));
            if constexpr (F::halves)
                _mm_store_ps(s1, _mm_mul_ps(group_scales(scales, group + 1), _mm_set1_ps(x.scales[2 * b + 1])));
#pragma GCC unroll 4
            for (int r = 0; r < kRowsPerBlock; ++r) {
                const __m256i c = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 32 * r));
                const __m256i p0 = _mm256_maddubs_epi16(_mm256_shuffle_epi8(lut, _mm256_and_si256(c, nibble)), x0);
                const __m256i p1 = _mm256_maddubs_epi16(
                    _mm256_shuffle_epi8(lut, _mm256_and_si256(_mm256_srli_epi16(c, 4), nibble)), x1);
                if constexpr (F::halves) {
                    const __m256 d0 = _mm256_cvtepi32_ps(_mm256_madd_epi16(p0, ones));
                    const __m256 d1 = _mm256_cvtepi32_ps(_mm256_madd_epi16(p1, ones));
                    acc[r] = _mm256_fmadd_ps(d0, _mm256_broadcast_ss(s0 + r), acc[r]);
                    acc[r] = _mm256_fmadd_ps(d1, _mm256_broadcast_ss(s1 + r), acc[r]);
                } else {
                    const __m256 d = _mm256_cvtepi32_ps(_mm256_madd_epi16(_mm256_add_epi16(p0, p1), ones));
                    acc[r] = _mm256_fmadd_ps(d, _mm256_broadcast_ss(s0 + r), acc[r]);
                }
            }
        }
        alignas(16) float o[4];
        _mm_store_ps(o, offset);
        for (int r = 0; r < kRowsPerBlock; ++r) y[r] = sum(Vec8{acc[r]}) + o[r];
    }
}

#endif

#else

template <class F>
void draft_rows(const SplitWeight& w, const DraftRow& x, int begin, int end, float* y) {
    const int blocks = w.blocks(), shift = w.group_size == 128 ? 1 : 0;
    for (int rb = begin; rb < end; ++rb, y += kRowsPerBlock) {
        for (int r = 0; r < kRowsPerBlock; ++r) {
            Vec8 acc = zero();
            float offset = 0.0f;
            for (int b = 0; b < blocks; ++b) {
                const uint8_t* codes = w.codes_at(rb, b) + 32 * r;
                int dot[2][8] = {};
                for (int i = 0; i < 32; ++i) {
                    dot[0][i / 4] += (w.levels[codes[i] & 15] + 64) * x.values[b * kBlock + i];
                    dot[1][i / 4] += (w.levels[codes[i] >> 4] + 64) * x.values[b * kBlock + 32 + i];
                }
                for (int half = 0; half < (F::halves ? 2 : 1); ++half) {
                    const int group = F::halves ? 2 * b + half : b >> shift;
                    const float scale =
                        bf16_to_float(w.scales_at(rb)[group * kRowsPerBlock + r]) * x.scales[2 * b + half];
                    const float o = F::halves ? x.offsets[2 * b + half] : x.offsets[2 * b] + x.offsets[2 * b + 1];
                    offset = std::fma(scale, o, offset);
                    float d[8];
                    for (int l = 0; l < 8; ++l)
                        d[l] = static_cast<float>(F::halves ? dot[half][l] : dot[0][l] + dot[1][l]);
                    acc = fma(load(d), broadcast(scale), acc);
                }
            }
            y[r] = sum(acc) + offset;
        }
    }
}

#endif

}  // namespace speq::SPEQ_ISA
