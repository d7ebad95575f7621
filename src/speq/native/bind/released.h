// Long work without the interpreter's lock.
#pragma once
#include <nanobind/nanobind.h>

namespace speq {

// Gives up the interpreter's lock for its lifetime.
//
// A daemon thread that asks for the lock back after the interpreter has begun to end is unwound by force, which no
// destructor and no frame of nanobind survives: the process would abort. So the end waits for those who are at work
// (see bind_released), and whoever comes later sleeps here until the process is gone.
class Released {
  public:
    Released();
    ~Released();
    Released(const Released&) = delete;
    Released& operator=(const Released&) = delete;

  private:
    PyThreadState* state_;
};

}  // namespace speq
