#include "thread_team.h"

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

// A barrier is a few hundred nanoseconds away when every member has a core; give the core away when it is not.
constexpr int kSpinsBeforeYield = 4000;
// Decoding starts the next job within a millisecond or so; sleeping and waking would cost as much.
constexpr int kSpinsBeforeSleep = 20000;

}  // namespace

ThreadTeam::ThreadTeam(int size) : size_(size) {
    for (int member = 1; member < size; ++member) threads_.emplace_back([this, member] { work(member); });
}

ThreadTeam::~ThreadTeam() {
    stopping_ = true;
    jobs_.fetch_add(1, std::memory_order_release);
    jobs_.notify_all();
    for (auto& thread : threads_) thread.join();
}

void ThreadTeam::run(const std::function<void(int)>& job) {
    job_ = &job;
    jobs_.fetch_add(1, std::memory_order_release);
    jobs_.notify_all();
    job(0);
    barrier();
}

void ThreadTeam::barrier() {
    if (size_ == 1) return;
    const uint32_t passed = barriers_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        barriers_.store(passed + 1, std::memory_order_release);
        return;
    }
    for (int spins = 0; barriers_.load(std::memory_order_acquire) == passed; ++spins) {
        if (spins < kSpinsBeforeYield)
            pause();
        else
            std::this_thread::yield();
    }
}

void ThreadTeam::work(int member) {
    for (uint32_t seen = 0;;) {
        for (int spins = 0; jobs_.load(std::memory_order_acquire) == seen && spins < kSpinsBeforeSleep; ++spins)
            pause();
        jobs_.wait(seen, std::memory_order_acquire);
        ++seen;
        if (stopping_) return;
        (*job_)(member);
        barrier();
    }
}

}  // namespace speq
