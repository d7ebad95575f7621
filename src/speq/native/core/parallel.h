// A loop over independent pieces of work on a few threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace speq {

// Calls `work()` once per thread for a function object, and that object with every index in [0, count). Rethrows the
// first exception. Where the system does not start so many threads, those that it starts share the work.
template <typename MakeWorker>
void parallel_for(int64_t count, int threads, const MakeWorker& make_worker) {
    std::atomic<int64_t> next = 0;
    std::exception_ptr failure;
    std::mutex failure_mutex;
    const auto run = [&] {
        try {
            auto worker = make_worker();
            for (int64_t i = next++; i < count; i = next++) worker(i);
        } catch (...) {
            const std::lock_guard lock(failure_mutex);
            failure = std::current_exception();
            next = count;
        }
    };
    {
        std::vector<std::jthread> helpers;
        const int64_t wanted = std::min<int64_t>(threads, count) - 1;
        helpers.reserve(static_cast<size_t>(std::max<int64_t>(wanted, 0)));
        try {
            for (int64_t i = 0; i < wanted; ++i) helpers.emplace_back(run);
        } catch (const std::system_error&) {
        }
        run();
    }
    if (failure) std::rethrow_exception(failure);
}

}  // namespace speq
