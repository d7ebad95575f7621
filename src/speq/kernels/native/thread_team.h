// A fixed team of threads that runs one job together; the calling thread is member 0. Members meet at cheap spinning
// barriers inside a job and sleep between jobs, so that an idle model costs no processor time.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace speq {

class ThreadTeam {
  public:
    explicit ThreadTeam(int size);
    ~ThreadTeam();
    ThreadTeam(const ThreadTeam&) = delete;
    ThreadTeam& operator=(const ThreadTeam&) = delete;

    int size() const { return size_; }

    // Runs job(member) on every member and returns when all have finished. The job must not throw.
    void run(const std::function<void(int)>& job);

    // Waits until every member has called it; only inside a job.
    void barrier();

  private:
    void work(int member);

    const int size_;
    const std::function<void(int)>* job_ = nullptr;
    bool stopping_ = false;
    alignas(64) std::atomic<uint32_t> jobs_{0};      // counts jobs started; members sleep on it
    alignas(64) std::atomic<int> arrived_{0};        // members waiting at the current barrier
    alignas(64) std::atomic<uint32_t> barriers_{0};  // counts barriers passed
    std::vector<std::thread> threads_;
};

}  // namespace speq
