// The yardstick of the kernels: y = W x for one token with W in plain FP16, as an engine without split weights has it.
// It is bound by memory, which eight lanes saturate, so there is one fast path for x86 and a portable one.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <barrier>
#include <chrono>

#include "bind/arrays.h"
#include "bind/released.h"
#include "core/half.h"
#include "core/threads.h"
#ifdef SPEQ_X86
#include <immintrin.h>
#endif

namespace nb = nanobind;

namespace {

constexpr size_t kRows = 4;  // at a time: they share each activation that is loaded

using Rows = void (*)(const uint16_t* weights, size_t columns, size_t rows, const float* x, float* y);

void rows_portable(const uint16_t* weights, size_t columns, size_t rows, const float* x, float* y) {
    for (size_t r = 0; r < rows; ++r) {
        float sums[8] = {};
        const uint16_t* row = weights + r * columns;
        size_t k = 0;
        for (; k + 8 <= columns; k += 8)
            for (size_t lane = 0; lane < 8; ++lane) sums[lane] += speq::fp16_to_float(row[k + lane]) * x[k + lane];
        float sum = 0;
        for (; k < columns; ++k) sum += speq::fp16_to_float(row[k]) * x[k];
        for (float s : sums) sum += s;
        y[r] = sum;
    }
}

#ifdef SPEQ_X86
__attribute__((target("avx2,fma,f16c"))) inline __m256 load(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

__attribute__((target("avx2,fma,f16c"))) void rows_avx2(const uint16_t* weights, size_t columns, size_t rows,
                                                        const float* x, float* y) {
    size_t r = 0;
    for (; r + kRows <= rows; r += kRows) {
        const uint16_t* row = weights + r * columns;
        __m256 sums[kRows][2] = {};
        size_t k = 0;
        for (; k + 16 <= columns; k += 16) {
            const __m256 low = _mm256_loadu_ps(x + k), high = _mm256_loadu_ps(x + k + 8);
            for (size_t i = 0; i < kRows; ++i) {
                const uint16_t* w = row + i * columns + k;
                if (k % 32 == 0) __builtin_prefetch(w + kRows * columns);  // the rows after these
                sums[i][0] = _mm256_fmadd_ps(load(w), low, sums[i][0]);
                sums[i][1] = _mm256_fmadd_ps(load(w + 8), high, sums[i][1]);
            }
        }
        for (size_t i = 0; i < kRows; ++i) {
            alignas(32) float lanes[8];
            _mm256_store_ps(lanes, _mm256_add_ps(sums[i][0], sums[i][1]));
            float sum = 0;
            for (float lane : lanes) sum += lane;
            for (size_t rest = k; rest < columns; ++rest) sum += speq::fp16_to_float(row[i * columns + rest]) * x[rest];
            y[r + i] = sum;
        }
    }
    rows_portable(weights + r * columns, columns, rows - r, x, y + r);
}
#endif

Rows best_rows() {
#ifdef SPEQ_X86
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
        return rows_avx2;
#endif
    return rows_portable;
}

// Fills y and returns the seconds that it took `threads` threads, the time to start them not counted.
double half_product(speq::Table<const uint16_t> weights, speq::Vector<const float> x, speq::Vector<float> y,
                    int threads) {
    const size_t rows = weights.shape(0), columns = weights.shape(1);
    speq::require(x.shape(0) == columns && y.shape(0) == rows, "x or y has another width");
    speq::require(threads >= 1, "threads must be positive");
    speq::require_aligned(weights, x, y);
    const Rows product = best_rows();
    const size_t share = (rows / threads + kRows) / kRows * kRows;
    const speq::Released released;
    std::barrier ready(threads), done(threads);
    const auto work = [&](int worker) {
        const size_t first = std::min(rows, worker * share), last = std::min(rows, first + share);
        product(weights.data() + first * columns, columns, last - first, x.data(), y.data() + first);
        done.arrive_and_wait();
    };
    const speq::Threads others(1, threads, [&](int worker) {
        ready.arrive_and_wait();
        work(worker);
    });
    ready.arrive_and_wait();
    const auto start = std::chrono::steady_clock::now();
    work(0);
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    return elapsed.count();
}

}  // namespace

void bind_half_product(nb::module_& m) {
    m.def("half_product", &half_product, nb::arg(), nb::arg(), nb::arg().noconvert(), nb::arg());
}
