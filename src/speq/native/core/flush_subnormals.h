// While an object of this class lives, the thread's float32 arithmetic takes numbers below 2^-126 as zero and gives
// zero for them, as the BF16 instruction does whatever the mode: so paths with and without it agree there too.
#pragma once
#include <cstdint>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace speq {

class FlushSubnormals {
  public:
    FlushSubnormals() : before_(read()) { write(before_ | kFlush); }
    ~FlushSubnormals() { write(before_); }
    FlushSubnormals(const FlushSubnormals&) = delete;
    FlushSubnormals& operator=(const FlushSubnormals&) = delete;

  private:
#if defined(__x86_64__)
    using Mode = uint32_t;
    static constexpr Mode kFlush = 0x8040;  // results and operands
    static Mode read() { return _mm_getcsr(); }
    static void write(Mode mode) { _mm_setcsr(mode); }
#elif defined(__aarch64__)
    using Mode = uint64_t;
    static constexpr Mode kFlush = 1u << 24;
    static Mode read() {
        Mode mode;
        asm volatile("mrs %0, fpcr" : "=r"(mode));
        return mode;
    }
    static void write(Mode mode) { asm volatile("msr fpcr, %0" : : "r"(mode)); }
#else
    using Mode = uint32_t;
    static constexpr Mode kFlush = 0;
    static Mode read() { return 0; }
    static void write(Mode) {}
#endif
    Mode before_;
};

}  // namespace speq
