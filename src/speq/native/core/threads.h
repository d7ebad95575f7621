// Threads that are all started, or none of them.
#pragma once
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

#include "core/user_error.h"

namespace speq {

// Runs work(first) ... work(last - 1), each on a thread of its own, and waits for them when it is destroyed. Throws
// UserError if the system does not start so many; none of them has begun its work then. `last` counts the calling
// thread, which is worker 0 where `first` is 1.
class Threads {
  public:
    template <class Work>
    Threads(int first, int last, Work work) {
        threads_.reserve(static_cast<size_t>(last - first));
        try {
            for (int worker = first; worker < last; ++worker)
                threads_.emplace_back([this, work, worker] {
                    gate_.wait(closed);
                    if (gate_ == open) work(worker);
                });
        } catch (const std::system_error& error) {
            const size_t started = threads_.size() + static_cast<size_t>(first);
            set(abandoned);
            join();
            throw too_many_threads(static_cast<size_t>(last), started, error);
        }
        set(open);
    }
    ~Threads() { join(); }
    Threads(const Threads&) = delete;
    Threads& operator=(const Threads&) = delete;

  private:
    enum Gate { closed, open, abandoned };

    void set(Gate gate) {
        gate_ = gate;
        gate_.notify_all();
    }
    void join() {
        for (auto& thread : threads_) thread.join();
        threads_.clear();
    }

    std::atomic<Gate> gate_{closed};
    std::vector<std::thread> threads_;
};

}  // namespace speq
