// The sums of error feedback: 32 rows are lanes, so that the factors are read once for all of them.
#pragma once
#include <cstring>

#include "core/kernels.h"
#include "core/simd.h"

namespace speq::SPEQ_ISA {

// See Kernels::add_products. Products and sums are rounded one by one, as NumPy does it; the sums of eight columns stay
// in registers.
inline void add_products(const float* errors, const float* factors, int n, float* targets) {
    using Lanes = float __attribute__((vector_size(SPEQ_AVX512 ? 64 : SPEQ_AVX2 ? 32 : 16)));
    constexpr int kLanes = sizeof(Lanes) / sizeof(float), kVectors = SPEQ_AVX512 ? 2 : 1, kStep = kLanes * kVectors;
    const auto load_lanes = [](const float* from) SPEQ_LAMBDA {
        Lanes lanes;
        std::memcpy(&lanes, from, sizeof lanes);
        return lanes;
    };
    for (int row = 0; row < kFeedbackRows; row += kStep) {
        Lanes sums[kFeedbackColumns][kVectors];
        const auto for_each_sum = [&](auto f) SPEQ_LAMBDA {
            unroll<kFeedbackColumns>([&](auto c) SPEQ_LAMBDA {
                unroll<kVectors>([&](auto v) SPEQ_LAMBDA { f(c, v, targets + c * kFeedbackRows + row + v * kLanes); });
            });
        };
        for_each_sum([&](auto c, auto v, float* at) SPEQ_LAMBDA { sums[c][v] = load_lanes(at); });
        for (int j = 0; j < n; ++j) {
            Lanes error[kVectors];
            unroll<kVectors>([&](auto v) SPEQ_LAMBDA {
                error[v] = load_lanes(errors + static_cast<size_t>(j) * kFeedbackRows + row + v * kLanes);
            });
            const float* factor = factors + static_cast<size_t>(j) * kFeedbackColumns;
            for_each_sum([&](auto c, auto v, float*) SPEQ_LAMBDA { sums[c][v] += error[v] * factor[c]; });
        }
        for_each_sum([&](auto c, auto v, float* at) SPEQ_LAMBDA { std::memcpy(at, &sums[c][v], sizeof(Lanes)); });
    }
}

}  // namespace speq::SPEQ_ISA
