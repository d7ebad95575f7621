#include "bind/released.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <thread>

namespace nb = nanobind;

namespace speq {
namespace {

std::atomic<int> at_work{0};  // Released objects that are alive
std::atomic<bool> ending{false};
std::atomic<std::thread::id> ending_thread{};  // which may still work, in what runs at exit after this

}  // namespace

// Counted before `ending` is read, as the end sets `ending` before it reads the count: one of the two sees the other.
Released::Released() {
    ++at_work;
    const bool too_late = ending && std::this_thread::get_id() != ending_thread.load();
    if (too_late) --at_work;
    state_ = PyEval_SaveThread();
    while (too_late) std::this_thread::sleep_for(std::chrono::hours(1));
}

Released::~Released() {
    PyEval_RestoreThread(state_);
    --at_work;
}

}  // namespace speq

void bind_released(nb::module_& m) {
    using namespace speq;
    m.def("_end", [] {
        ending_thread = std::this_thread::get_id();
        ending = true;
        PyThreadState* state = PyEval_SaveThread();
        while (at_work > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        PyEval_RestoreThread(state);
    });
    nb::module_::import_("atexit").attr("register")(m.attr("_end"));
    // Those who were at work when the process was forked do not exist in the child.
    pthread_atfork(nullptr, nullptr, [] { at_work = 0; });
}
