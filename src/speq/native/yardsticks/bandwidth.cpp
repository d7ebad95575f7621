// The read bandwidth of this machine: what a plain pass over memory by all threads reaches, with no work done on the
// data.
#include <nanobind/nanobind.h>

#include <algorithm>
#include <chrono>
#include <vector>

#include "bind/released.h"
#include "core/aligned.h"
#include "core/checks.h"
#include "core/threads.h"

namespace nb = nanobind;

namespace {

constexpr size_t kPrefetch = 512;  // words ahead; without it some machines show two thirds of what they can do

uint64_t sum_words(const uint64_t* words, size_t count) {
    uint64_t sums[16] = {};
    for (size_t i = 0; i + 16 <= count; i += 16) {
        __builtin_prefetch(words + i + kPrefetch);
        __builtin_prefetch(words + i + kPrefetch + 8);
        for (size_t lane = 0; lane < 16; ++lane) sums[lane] += words[i + lane];
    }
    uint64_t total = 0;
    for (uint64_t s : sums) total += s;
    return total;
}

// Bytes per second of the best of `repeats` passes of `threads` threads over `bytes` bytes.
double read_bandwidth(size_t bytes, int threads, int repeats) {
    speq::require(threads >= 1 && repeats >= 1, "threads and repeats must be positive");
    const size_t words = bytes / sizeof(uint64_t);
    const auto memory = speq::make_aligned<uint64_t>(words);
    std::fill_n(memory.get(), words, 1);  // pages that nobody wrote to would all be one, in the cache
    std::vector<uint64_t> totals(threads);
    double best = 0;
    const speq::Released released;
    for (int i = 0; i < repeats; ++i) {
        const auto start = std::chrono::steady_clock::now();
        {
            const speq::Threads readers(0, threads, [&](int reader) {
                const size_t share = words / threads / 16 * 16;
                totals[reader] += sum_words(memory.get() + reader * share, share);
            });
        }
        const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
        best = std::max(best, static_cast<double>(bytes) / elapsed.count());
    }
    uint64_t check = 0;  // the sum keeps the loop alive
    for (uint64_t t : totals) check += t;
    return check > 0 ? best : 0.0;
}

}  // namespace

void bind_bandwidth(nb::module_& m) { m.def("read_bandwidth", &read_bandwidth); }
