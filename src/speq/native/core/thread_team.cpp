#include "core/thread_team.h"

#include <unistd.h>

#include <system_error>

#include "core/user_error.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace speq {
namespace {

void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// A stage ends within microseconds when every worker has a core; give the core away when it does not.
constexpr int kSpinsBeforeYield = 4000;
// Decoding starts the next run within a millisecond or so; sleeping and waking would cost as much.
constexpr int kSpinsBeforeSleep = 20000;

}  // namespace

ThreadTeam::ThreadTeam(int size, std::function<void(int, uint32_t)> job)
    : size_(size), job_(std::move(job)), process_(getpid()) {
    threads_.reserve(size);  // so that nothing but a thread itself can fail below
    try {
        for (int worker = 1; worker < size; ++worker) threads_.emplace_back([this, worker] { work(worker); });
    } catch (const std::system_error& error) {
        const size_t started = threads_.size() + 1;
        stop();
        throw too_many_threads(size, started, error);
    }
}

ThreadTeam::~ThreadTeam() {
    if (is_here())
        stop();
    else  // there is nobody to wait for, and a handle must not be destroyed before its thread has ended
        new std::vector<std::thread>(std::move(threads_));
}

bool ThreadTeam::is_here() const { return getpid() == process_; }

void ThreadTeam::stop() {
    stopping_.store(true, std::memory_order_relaxed);
    runs_.fetch_add(1, std::memory_order_release);
    runs_.notify_all();
    for (auto& thread : threads_) thread.join();
    threads_.clear();
}

void ThreadTeam::run() {
    const uint32_t run = runs_.fetch_add(1, std::memory_order_release) + 1;
    if (size_ > 1) runs_.notify_all();
    job_(0, run);
}

void ThreadTeam::wait(const Stage& stage, uint32_t run, int total) const {
    for (int spins = 0; !stage.is_finished(run, total); ++spins) {
        if (spins < kSpinsBeforeYield)
            pause();
        else
            std::this_thread::yield();
    }
}

void ThreadTeam::work(int worker) {
    for (uint32_t seen = 0;;) {
        for (int spins = 0; runs_.load(std::memory_order_acquire) == seen && spins < kSpinsBeforeSleep; ++spins)
            pause();
        runs_.wait(seen, std::memory_order_acquire);
        seen = runs_.load(std::memory_order_acquire);
        if (stopping_.load(std::memory_order_relaxed)) return;
        job_(worker, seen);
    }
}

}  // namespace speq
