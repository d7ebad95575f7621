// A fixed team of threads that runs one job again and again; the calling thread is worker 0. The job is divided into
// stages of tasks, and the next stage may begin when all tasks of the last are finished, not when all workers have
// arrived: a worker that lost its core to another process holds up nobody unless it lost it inside a task. Between jobs
// workers sleep.
#pragma once
#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace speq {

// The tasks of one stage. Each worker has a share of neighbouring ones, which it claims one by one, so that it reads
// weights on from where it stopped; whoever is through with its own helps others with theirs. Counts carry the number
// of the run they belong to, so that nothing has to be reset and a worker left over from an earlier run can do no harm.
class Stage {
  public:
    explicit Stage(int workers) : workers_(workers), claimed_(std::make_unique<Count[]>(workers)) {}

    // A task in 0..total-1 for a worker, or -1 if there is none left for this run.
    int claim(uint32_t run, int total, int worker) {
        for (int i = 0; i < workers_; ++i) {
            const int64_t of = (worker + i) % workers_;
            const int begin = static_cast<int>(of * total / workers_);
            const int next = take(claimed_[of], run, static_cast<int>((of + 1) * total / workers_) - begin);
            if (next >= 0) return begin + next;
        }
        return -1;
    }
    void finish_task(uint32_t run) {
        uint64_t seen = finished_.load(std::memory_order_relaxed);
        while (!finished_.compare_exchange_weak(seen, pack(run, run_of(seen) == run ? count_of(seen) + 1 : 1),
                                                std::memory_order_acq_rel)) {
        }
    }
    // Whether all tasks of this run are finished; also true when a later run has begun.
    bool is_finished(uint32_t run, int total) const {
        const uint64_t seen = finished_.load(std::memory_order_acquire);
        return (run_of(seen) == run && count_of(seen) == total) || is_later(run_of(seen), run);
    }

  private:
    struct alignas(64) Count {
        std::atomic<uint64_t> state{0};
    };

    // The next of `total`, or -1.
    static int take(Count& count, uint32_t run, int total) {
        uint64_t seen = count.state.load(std::memory_order_relaxed);
        for (;;) {
            const int next = run_of(seen) == run ? count_of(seen) : 0;
            if (next >= total || is_later(run_of(seen), run)) return -1;
            if (count.state.compare_exchange_weak(seen, pack(run, next + 1), std::memory_order_acq_rel)) return next;
        }
    }
    static uint64_t pack(uint32_t run, int count) {
        return static_cast<uint64_t>(run) << 32 | static_cast<uint32_t>(count);
    }
    static uint32_t run_of(uint64_t state) { return static_cast<uint32_t>(state >> 32); }
    static int count_of(uint64_t state) { return static_cast<int>(state & 0xffffffffu); }
    static bool is_later(uint32_t a, uint32_t b) { return static_cast<int32_t>(a - b) > 0; }

    const int workers_;
    std::unique_ptr<Count[]> claimed_;  // of each worker's share
    alignas(64) std::atomic<uint64_t> finished_{0};
};

class ThreadTeam {
  public:
    // job(worker, run) is called on every worker for every run; it must return early when it finds a later run begun.
    // Throws UserError if the system does not start so many threads; none is left then.
    ThreadTeam(int size, std::function<void(int, uint32_t)> job);
    ~ThreadTeam();
    ThreadTeam(const ThreadTeam&) = delete;
    ThreadTeam& operator=(const ThreadTeam&) = delete;

    int size() const { return size_; }

    // Whether this is the process that the team was made in: a forked child has none of its threads.
    bool is_here() const;

    // Starts the next run on all workers and returns when the caller's own part of it is over.
    void run();

    // The number that the next run() gives to its run.
    uint32_t next_run() const { return runs_.load(std::memory_order_relaxed) + 1; }

    // Waits, politely, until the stage's tasks are finished.
    void wait(const Stage& stage, uint32_t run, int total) const;

  private:
    void work(int worker);
    void stop();

    const int size_;
    const std::function<void(int, uint32_t)> job_;
    std::atomic<bool> stopping_{false};
    alignas(64) std::atomic<uint32_t> runs_{0};  // runs started; workers sleep on it
    const pid_t process_;
    std::vector<std::thread> threads_;
};

}  // namespace speq
