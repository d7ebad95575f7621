// A loop over independent pieces of work on a few threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace speq::codec {

struct JoinedThreads {
    std::vector<std::thread> threads;

    ~JoinedThreads() {
        for (std::thread& thread : threads) thread.join();
    }
};

// Calls `work()` once per thread for a function object, and that object with every index in [0, count). Rethrows the
// first exception.
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
        JoinedThreads helpers;
        for (int64_t i = 1; i < std::min<int64_t>(threads, count); ++i) helpers.threads.emplace_back(run);
        run();
    }
    if (failure) std::rethrow_exception(failure);
}

}  // namespace speq::codec
